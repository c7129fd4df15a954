"""Metrics of iterations and chunks."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.types import SUMMED_METRICS, Array, EpisodeStats, Exploration, Metrics, Row

_COUNTED = ("rows", "env_steps", "episodes", "return_sum", "length_sum")
"""What each device counts for itself."""


_NEVER = 2**30
"""Above every number of gradient steps in a chunk."""


def reduce_metrics(metrics: Metrics) -> Metrics:
    """Add up, or average, metrics over their leading axis, which is in the order of time."""

    def reduce(name: str, leaf: Array) -> Array:
        if name in SUMMED_METRICS:
            return jnp.sum(leaf, axis=0, dtype=leaf.dtype)
        if name == "first_skipped":
            # The steps before that iteration, and those of its own before the skipped one.
            where = jnp.argmax(metrics.skipped > 0, axis=0)
            before = jnp.cumsum(metrics.gradient_steps, axis=0) - metrics.gradient_steps
            return (before + leaf)[where]
        return jnp.mean(leaf, axis=0)

    return Metrics(**{name: reduce(name, leaf) for name, leaf in metrics._asdict().items()})


def count_step(
    episode: EpisodeStats, row: Row, stepped: Array, explore: Exploration
) -> tuple[EpisodeStats, Metrics]:
    """Follow the episodes through one vector step; ``stepped`` [E] is false for resets."""
    ends = row.terminated | row.truncated
    episode_return = episode.episode_return + jnp.where(stepped, row.reward, 0.0)
    episode_length = episode.episode_length + stepped.astype(jnp.int32)
    zero = jnp.float32(0)
    metrics = Metrics(
        rows=jnp.int32(stepped.size),
        env_steps=jnp.sum(stepped, dtype=jnp.int32),
        gradient_steps=jnp.int32(0),
        episodes=jnp.sum(ends, dtype=jnp.int32),
        return_sum=jnp.sum(jnp.where(ends, episode_return, 0.0)),
        length_sum=jnp.sum(jnp.where(ends, episode_length, 0).astype(jnp.float32)),
        skipped=jnp.int32(0),
        first_skipped=jnp.int32(0),
        lost=jnp.int32(0),
        averagings=jnp.int32(0),
        gap_sum=zero,
        loss=zero,
        grad_norm=zero,
        q_mean=zero,
        epsilon=jnp.mean(explore.epsilon),
    )
    episode = EpisodeStats(
        episode_return=jnp.where(ends, 0.0, episode_return),
        episode_length=jnp.where(ends, 0, episode_length),
    )
    return episode, metrics


def over_devices(metrics: Metrics, collectives: Collectives) -> Metrics:
    """Return the metrics of all devices together, of each one's own."""
    summed = {name: getattr(metrics, name) for name in _COUNTED}
    most = {name: getattr(metrics, name) for name in ("skipped", "lost")}
    # The least of the firsts, which are void where nothing was skipped.
    most["first_skipped"] = -jnp.where(metrics.skipped > 0, metrics.first_skipped, _NEVER)
    most = collectives.max(most)
    first = jnp.where(most["skipped"] > 0, -most["first_skipped"], 0)
    means = {name: getattr(metrics, name) for name in ("loss", "grad_norm", "q_mean", "epsilon")}
    return metrics._replace(
        **collectives.sum(summed), **{**most, "first_skipped": first}, **collectives.mean(means)
    )
