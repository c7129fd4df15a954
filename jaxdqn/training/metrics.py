"""Metrics of iterations and chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.loops import scan
from jaxdqn.losses import is_masked
from jaxdqn.types import (
    SUMMED_METRICS,
    Array,
    EpisodeStats,
    Exploration,
    Metrics,
    PyTree,
    Row,
)

_OF_ENVS = ("env_steps", "episodes", "return_sum", "length_sum", "illegal")
"""Metrics kept for each environment, leaves [E], which ``over_envs`` sums at the end of a chunk.

XLA would fuse the environment step into a sum over E in every step, and a GPU runs so small a
reduction on a single multiprocessor.
"""
_COUNTED = ("rows", *_OF_ENVS)
"""Metrics that differ between devices and are summed over them."""
_AVERAGED = ("loss", "grad_norm", "q_mean", "epsilon", "extra", "diagnostics")
_NEVER = 2**30
"""Larger than the number of gradient steps in any chunk."""


@jax.named_scope("metrics")
def reduce_metrics(metrics: Metrics) -> Metrics:
    """Reduce metrics over their leading axis, which is time."""

    def reduce(name: str, leaf: Any) -> Any:
        if name in SUMMED_METRICS:
            return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), leaf)
        if name == "first_skipped":
            # Gradient steps of the earlier iterations, plus the earlier steps of the same
            # iteration.
            iteration = jnp.argmax(metrics.skipped > 0, axis=0)
            before = jnp.cumsum(metrics.gradient_steps, axis=0) - metrics.gradient_steps
            return (before + leaf)[iteration]
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), leaf)

    return Metrics(**{name: reduce(name, leaf) for name, leaf in metrics._asdict().items()})


def scan_and_add(
    step: Callable[[Any, Any], tuple[Any, Any, Metrics]],
    state: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    **form: bool,
) -> tuple[PyTree, PyTree, Metrics]:
    """Scan over steps and sum their metrics.

    The sums are part of the carry. Stacking the metrics would write each one to an address that
    depends on the loop index; on a GPU this costs an update of the CUDA graph in every step.

    Args:
      step: ``step(state, x) -> (state, output, metrics)``
      state: carry of the scan.
      xs: leaves [length, ...], or None.
      length: number of steps, at least 1; needed only without ``xs``.
      form: further keyword arguments of ``jaxdqn.loops.scan``.

    Returns:
      The last state, the outputs [length, ...], and the metrics added by ``add_metrics``.
    """
    disabled: Any = getattr(jax.config, "jax_disable_jit")  # noqa: B009  (declared at run time)
    total: Any = None  # without jit the loop runs in Python, and the first step starts the sums
    if not disabled:
        # The jitted step is traced once, for the shapes and for the loop.
        step = jax.jit(step, inline=True)
        first = jax.eval_shape(lambda xs: jax.tree.map(lambda leaf: leaf[0], xs), xs)
        shapes = jax.eval_shape(step, state, first)[2]
        total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(carry: tuple[PyTree, Any], x: Any) -> tuple[tuple[PyTree, Metrics], PyTree]:
        state, output, metrics = step(carry[0], x)
        return (state, metrics if carry[1] is None else add_metrics(carry[1], metrics)), output

    (state, sums), outputs = scan(body, (state, total), xs, length, **form)
    return state, outputs, sums


@jax.named_scope("metrics")
def add_metrics(total: Metrics, metrics: Metrics) -> Metrics:
    """Add the metrics of one iteration to ``total``; ``mean_metrics`` converts sums to means."""
    added = jax.tree.map(jnp.add, total, metrics)
    is_first = (metrics.skipped > 0) & (total.skipped == 0)
    first = jnp.where(is_first, total.gradient_steps + metrics.first_skipped, total.first_skipped)
    return added._replace(first_skipped=first)


@jax.named_scope("metrics")
def over_envs(metrics: Metrics) -> Metrics:
    """Sum the per-environment metrics, leaves [..., E], over E."""
    summed = {
        name: jax.tree.map(
            lambda leaf: jnp.sum(leaf, axis=-1, dtype=leaf.dtype), getattr(metrics, name)
        )
        for name in _OF_ENVS
    }
    return metrics._replace(**summed)


@jax.named_scope("metrics")
def mean_metrics(total: Metrics, steps: Array | int) -> Metrics:
    """Divide the averaged fields by ``steps``; up to rounding the result of ``reduce_metrics``."""
    count = jnp.asarray(steps, jnp.float32)

    def mean(name: str, leaf: Any) -> Any:
        if name in SUMMED_METRICS or name == "first_skipped":
            return leaf
        return jax.tree.map(lambda leaf: leaf / count, leaf)

    return Metrics(**{name: mean(name, leaf) for name, leaf in total._asdict().items()})


def step_episode(
    episode: EpisodeStats, reward: Array, ends: Array, stepped: Array
) -> tuple[EpisodeStats, EpisodeStats]:
    """Return the episode statistics after a vector step, and those with which the next step starts.

    The latter are zero in environments whose episode ends or is reset. All arguments are [E], as in
    ``count_step``.
    """
    episode_return = episode.episode_return + jnp.where(stepped, reward, 0.0)
    episode_length = episode.episode_length + stepped.astype(jnp.int32)
    # A reset may come without an end, for example when a simulator is restarted.
    over = ends | ~stepped
    return EpisodeStats(episode_return, episode_length), EpisodeStats(
        episode_return=jnp.where(over, 0.0, episode_return),
        episode_length=jnp.where(over, 0, episode_length),
    )


@jax.named_scope("metrics")
def count_step(
    episode: EpisodeStats, row: Row, stepped: Array, ends: Array, exploration: Exploration
) -> tuple[EpisodeStats, Metrics]:
    """Update the episode statistics and return the metrics of one vector step.

    Episodes, their sums and the environment steps are counted per environment, [E].

    Args:
      episode: episode statistics before the step.
      row: row of the step, leaves [E, ...].
      stepped: [E] bool, False for resets.
      ends: [E] bool, True where this step reports the end of an episode; see ``episode_ends``.
      exploration: exploration parameters of the step.
    """
    (episode_return, episode_length), after = step_episode(episode, row.reward, ends, stepped)
    zero = jnp.float32(0)
    metrics = Metrics(
        rows=jnp.int32(stepped.size),
        env_steps=stepped.astype(jnp.int32),
        gradient_steps=jnp.int32(0),
        episodes=ends.astype(jnp.int32),
        return_sum=jnp.where(ends, episode_return, 0.0),
        length_sum=jnp.where(ends, episode_length, 0).astype(jnp.float32),
        skipped=jnp.int32(0),
        first_skipped=jnp.int32(0),
        lost=jnp.int32(0),
        averagings=jnp.int32(0),
        gap_sum=zero,
        loss=zero,
        grad_norm=zero,
        q_mean=zero,
        epsilon=jnp.mean(exploration.epsilon),
        extra={},
        illegal=_count_illegal(row, stepped),
    )
    return after, metrics


def _count_illegal(row: Row, stepped: Array) -> PyTree:
    """Return 1 where the mask forbids the action of an environment step, [E] int32.

    Return an empty tuple if there is no mask.
    """
    if not is_masked(row.legal):
        return ()
    allowed = jnp.take_along_axis(row.legal, row.action[:, None], axis=1)[:, 0]
    return (stepped & ~allowed).astype(jnp.int32)


def all_reduce_metrics(metrics: Metrics, collectives: Collectives) -> Metrics:
    """Reduce metrics over the environments of each device and then over all devices."""
    metrics = over_envs(metrics)
    counted = {name: getattr(metrics, name) for name in _COUNTED}
    maxima = {name: getattr(metrics, name) for name in ("skipped", "lost")}
    # Minimum over devices as the maximum of the negative, so one collective reduces all three.
    maxima["first_skipped"] = -jnp.where(metrics.skipped > 0, metrics.first_skipped, _NEVER)
    maxima = collectives.max(maxima)
    first = jnp.where(maxima["skipped"] > 0, -maxima["first_skipped"], 0)
    means = {name: getattr(metrics, name) for name in _AVERAGED}
    return metrics._replace(
        **collectives.sum(counted), **{**maxima, "first_skipped": first}, **collectives.mean(means)
    )
