"""Periodic averaging (local SGD): replicas step alone, then take the mean of their parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.tree import pack, square, unpack
from jaxdqn.types import AgentState, Array, PyTree


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

    A step that the guard undid leaves a replica's counts behind: that of steps to the
    next target, and those of the optimiser ([] int32: Adam's, a schedule's). The
    furthest speaks for all. So besides what is averaged each replica sends 4 bytes for
    its distance and for each count.
    """
    polyak, every = config.target_tau is not None, config.average_every or 1

    def average(learner: AgentState) -> tuple[AgentState, Array]:
        params = _mean(learner.params, collectives)
        distance = _square(jax.tree.map(jnp.subtract, learner.params, params))
        own = [learner.since_target, *filter(_is_count, jax.tree.leaves(learner.opt_state))]
        distances, counts = _gather_numbers(distance, own, collectives)
        gap = jnp.sqrt(jnp.mean(distances) / jnp.maximum(_square(params), _TINY))
        if config.algorithm == "pqn":
            target, since = (), learner.since_target
        elif polyak:
            target, since = _mean(learner.target_params, collectives), learner.since_target
        else:
            since = agreed_count(counts[:, 0], every, config.target_period)
            target = jax.tree.map(
                lambda new, old: jnp.where(since == 0, new, old), params, learner.target_params
            )
        opt_state = learner.opt_state
        if config.average_moments:
            opt_state = _mean(opt_state, collectives)
        opt_state = _with_counts(opt_state, jnp.max(counts[:, 1:], axis=0))
        return AgentState(params, target, opt_state, since), gap

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


def _is_count(leaf: Array) -> bool:
    return leaf.ndim == 0 and leaf.dtype == jnp.int32


def _with_counts(tree: PyTree, counts: Array) -> PyTree:
    """Replace the counts in a tree, in the order of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    agreed = iter(counts)
    return jax.tree.unflatten(
        structure, [next(agreed) if _is_count(leaf) else leaf for leaf in leaves]
    )


def _gather_numbers(
    number: Array, counts: list[Array], collectives: Collectives
) -> tuple[Array, Array]:
    """Gather a float32 [D] and the int32s [D, n] of each replica by one collective."""
    word = jax.lax.bitcast_convert_type(number, jnp.int32)
    words = collectives.all_gather(jnp.stack([word, *counts]))
    return jax.lax.bitcast_convert_type(words[:, 0], jnp.float32), words[:, 1:]


def _square(tree: PyTree) -> Array:
    return square(pack(tree))
