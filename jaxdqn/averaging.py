"""Periodic averaging (local SGD): replicas step alone, then take the mean of their parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdqn.config import Config
from jaxdqn.optim import pack, square, unpack
from jaxdqn.types import AgentState, Array, Collectives, PyTree


def make_average(
    config: Config, collectives: Collectives
) -> Callable[[AgentState], tuple[AgentState, Array]]:
    """Make ``average(learner) -> (learner, gap)``, which all replicas call together.

    The parameters become their mean over replicas (Stich 2019, "Local SGD
    converges fast and communicates little"), and by ``average_moments`` the
    optimiser's moments too. A target network that has just been replaced becomes
    the averaged parameters; one that moves by Polyak steps is averaged itself. The
    gap is the replicas' distance from the mean before, root mean square over
    replicas, divided by the norm of the mean.

    Besides what is averaged, each replica sends 8 bytes: its distance, and its
    count of steps to the next target, which a step that the guard undid leaves behind.
    """
    polyak, every = config.target_tau is not None, config.average_every or 1

    def average(learner: AgentState) -> tuple[AgentState, Array]:
        params = _mean(learner.params, collectives)
        distance = _square(jax.tree.map(jnp.subtract, learner.params, params))
        distances, counts = _gather_two(distance, learner.since_target, collectives)
        gap = jnp.sqrt(jnp.mean(distances) / jnp.maximum(_square(params), _TINY))
        if polyak:
            target, since = _mean(learner.target_params, collectives), learner.since_target
        else:
            since = agreed_count(counts, every, config.target_period)
            target = jax.tree.map(
                lambda new, old: jnp.where(since == 0, new, old), params, learner.target_params
            )
        moments = learner.opt_state
        if config.average_moments:
            moments = _mean(moments, collectives)
        return AgentState(params, target, moments, since), gap

    return average


def agreed_count(counts: Array, every: int, period: int) -> Array:
    """Return the gradient steps since the target was replaced, of all replicas; 0 if it is now.

    The furthest replica speaks for all: that which undid no step, or fewest.

    Args:
      counts: [D] int32, each replica's own, at the end of ``every`` steps.
      every: gradient steps between averagings, a divisor of ``period``.
      period: gradient steps between replacements.
    """
    furthest = jnp.max(jnp.where(counts == 0, period, counts))
    return (furthest + every - 1) // every * every % period


_TINY = 1e-30


def _mean(tree: PyTree, collectives: Collectives) -> PyTree:
    """Average the floating-point leaves over replicas, the small ones as one vector."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    means = iter(unpack(collectives.mean(pack(floats)), floats))
    return jax.tree.unflatten(
        structure,
        [next(means) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf for leaf in leaves],
    )


def _gather_two(number: Array, count: Array, collectives: Collectives) -> tuple[Array, Array]:
    """Gather a float32 and an int32 of each replica by one collective."""
    words = collectives.gather(jnp.stack([jax.lax.bitcast_convert_type(number, jnp.int32), count]))
    return jax.lax.bitcast_convert_type(words[:, 0], jnp.float32), words[:, 1]


def _square(tree: PyTree) -> Array:
    return square(pack(tree))
