"""Periodic averaging (local SGD): replicas step independently, then average their parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.communication.outer import outer_step
from jaxdqn.config.config import Config
from jaxdqn.tree import pack, square, unpack
from jaxdqn.types import AgentState, Array, PyTree, trained_params, with_trained_params


def make_average(
    config: Config, collectives: Collectives, *, target_period: int | None
) -> Callable[[AgentState], tuple[AgentState, Array]]:
    """Make ``average(agent_state) -> (agent_state, gap)``, which all replicas call together.

    The parameters are replaced by their mean over replicas (Stich 2019, "Local SGD converges fast
    and communicates little"), or with an outer optimiser by the result of ``outer_step``: a step
    from the parameters after the last averaging towards this mean. With ``average_moments`` the
    optimiser's moments are averaged too. If the last gradient step copied the parameters to the
    target network, the target is set to the new parameters. A Polyak-averaged target network
    (``target_period=None``) is averaged over replicas. ``gap`` is the root-mean-square distance of
    the replicas from their mean before averaging, divided by the norm of the mean.

    If the guard undid a step of one replica, the counts of that replica are too low: the steps
    since the last copy to the target, and the counts in the optimiser state ([] int32, of Adam or
    a schedule). All replicas therefore take the largest count. For this each replica sends 4 bytes
    for its distance and 4 bytes for each count, in addition to the averaged arrays.
    """
    every = config.average_every or 1

    def average(agent_state: AgentState) -> tuple[AgentState, Array]:
        params = _mean(agent_state.params, collectives)
        trained = trained_params(params)
        distance = _square(jax.tree.map(jnp.subtract, trained_params(agent_state.params), trained))
        opt_counts = filter(_is_count, jax.tree.leaves(agent_state.opt_state))
        local_counts = [agent_state.since_target, *opt_counts]
        distances, counts = _gather_numbers(distance, local_counts, collectives)
        gap = jnp.sqrt(jnp.mean(distances) / jnp.maximum(_square(trained), _TINY))
        opt_state = agent_state.opt_state
        if config.outer_optimizer == "nesterov":
            trained, outer = outer_step(
                opt_state.outer,
                trained,
                learning_rate=config.outer_learning_rate,
                momentum=config.outer_momentum,
            )
            params = with_trained_params(params, trained)
            opt_state = opt_state._replace(outer=outer)
        target, since = agent_state.target_params, agent_state.since_target
        if target_period is not None:
            since = agreed_count(counts[:, 0], every, target_period)
            target = jax.tree.map(lambda new, old: jnp.where(since == 0, new, old), params, target)
        elif jax.tree.leaves(target):
            target = _mean(target, collectives)
        if config.average_moments:
            opt_state = _mean_moments(config, opt_state, collectives)
        opt_state = _with_counts(opt_state, jnp.max(counts[:, 1:], axis=0))
        return AgentState(params, target, opt_state, since), gap

    return average


def agreed_count(counts: Array, every: int, period: int) -> Array:
    """Return the common number of gradient steps since the last copy to the target network.

    This is the count of the replica that skipped the fewest steps, rounded up to a multiple of
    ``every``; 0 if the target is replaced now.

    Args:
      counts: [D] int32, steps that each replica has counted since its last copy.
      every: gradient steps between averagings, a divisor of ``period``.
      period: gradient steps between two copies to the target network.
    """
    # A count of 0 means that the replica has just completed its period.
    furthest = jnp.max(jnp.where(counts == 0, period, counts))
    return (furthest + every - 1) // every * every % period


_TINY = 1e-30


def _mean_moments(config: Config, opt_state: PyTree, collectives: Collectives) -> PyTree:
    """Average the moments. The state of an outer optimiser is already equal on all replicas."""
    if config.outer_optimizer == "none":
        return _mean(opt_state, collectives)
    return opt_state._replace(inner=_mean(opt_state.inner, collectives))


def _mean(tree: PyTree, collectives: Collectives) -> PyTree:
    """Average the floating-point leaves over replicas; small leaves are sent as one vector."""
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
    new_counts = iter(counts)
    return jax.tree.unflatten(
        structure, [next(new_counts) if _is_count(leaf) else leaf for leaf in leaves]
    )


def _gather_numbers(
    number: Array, counts: list[Array], collectives: Collectives
) -> tuple[Array, Array]:
    """All-gather a float32 and n int32 of each replica in one collective: [D] and [D, n]."""
    word = jax.lax.bitcast_convert_type(number, jnp.int32)
    words = collectives.all_gather(jnp.stack([word, *counts]))
    return jax.lax.bitcast_convert_type(words[:, 0], jnp.float32), words[:, 1:]


def _square(tree: PyTree) -> Array:
    return square(pack(tree))
