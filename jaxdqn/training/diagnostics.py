"""Diagnostics of gradient steps, computed only if ``Config.diagnostics`` is set.

Like other metrics, diagnostics are means over the gradient steps of a chunk and over devices.
Histograms have fixed bins; each entry is the fraction of the batch in that bin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.losses import ILLEGAL
from jaxdqn.replay.prioritized import PrioritizedState
from jaxdqn.replay.prioritized_sequence import PrioritizedSequenceState
from jaxdqn.replay.sequence import SequenceState
from jaxdqn.replay.uniform import UniformState
from jaxdqn.tree import global_norm
from jaxdqn.types import (
    Agent,
    AgentState,
    Array,
    Batch,
    LearnInfo,
    Params,
    PyTree,
    SampleInfo,
    TrainState,
    trained_params,
)

_PER_DECADE = 4
_DECADES = (-4, 4)

ABS_TD_EDGES = tuple(
    10.0 ** (index / _PER_DECADE)
    for index in range(_DECADES[0] * _PER_DECADE, _DECADES[1] * _PER_DECADE + 1)
)
"""Inner edges of the bins of |TD error|; the first and the last bin are open."""
Q_EDGES = (*(-edge for edge in reversed(ABS_TD_EDGES[8:])), *ABS_TD_EDGES[8:])
"""Inner edges of the bins of Q: logarithmic on both sides of zero, from 0.01 in magnitude."""

Diagnostics = dict[str, Array]
"""Arrays by name, [] float32; histograms are [bins] float32 and their names end in
``_histogram``."""

_RINGS = (UniformState, PrioritizedState, SequenceState, PrioritizedSequenceState)


def make_diagnostics(
    config: Config, agent: Agent
) -> Callable[[TrainState, Any, LearnInfo, Array, SampleInfo | None], LearnInfo]:
    """Make ``diagnose(state, batch, info, weights[B], sample) -> info`` for one gradient step.

    ``state`` is the training state before the step. ``sample`` is None without a replay. Without
    ``config.diagnostics`` the function returns ``info`` unchanged.
    """
    if not config.diagnostics:
        return lambda state, batch, info, weights, sample: info

    def diagnose(
        state: TrainState, batch: Any, info: LearnInfo, weights: Array, sample: SampleInfo | None
    ) -> LearnInfo:
        q_values = _q_values(agent, state.agent.params, batch)
        counted = weights > 0  # PQN gives invalid rows the weight 0
        found: Diagnostics = {
            **dict(info.diagnostics),
            "abs_td_mean": jnp.sum(jnp.where(counted, info.abs_td, 0.0))
            / jnp.maximum(jnp.sum(counted.astype(jnp.float32)), 1.0),
            "abs_td_histogram": _shares(info.abs_td, counted, ABS_TD_EDGES),
            "q_max": jnp.mean(jnp.max(q_values, axis=-1)),
            "q_histogram": _shares(q_values, q_values > ILLEGAL / 2, Q_EDGES),
            **_target_gap(state.agent),
        }
        if sample is not None:
            found |= _of_sample(config, state.replay, sample, weights)
        return info._replace(diagnostics=found)

    return diagnose


def _q_values(agent: Agent, params: Params, batch: Any) -> Array:
    """Return Q [B, A] of the observations of a ``Batch``, or of the first step of each sequence.

    No exploration noise is applied.
    """
    if isinstance(batch, Batch):
        obs, legal = batch.obs_tm1, batch.legal_tm1
        first = jnp.zeros(obs.shape[0], jnp.bool_)
        carry = agent.initial_carry(obs.shape[0])
    else:
        obs, legal, first = jax.tree.map(lambda leaf: leaf[:, 0], (batch.obs, batch.legal,
                                                                   batch.first))  # fmt: skip
        carry = batch.extras
    masks = () if isinstance(legal, tuple) else (legal,)
    key = jax.random.key(0)  # not used, because there is no exploration
    return agent.act(key, params, carry, obs, first, None, *masks)[2].q


def _shares(values: Array, counted: Array, edges: tuple[float, ...]) -> Array:
    """Return the fraction of the counted values in each bin, [len(edges) + 1] float32."""
    bins = jnp.searchsorted(jnp.asarray(edges, jnp.float32), values.ravel(), side="right")
    counted = counted.ravel().astype(jnp.float32)
    counts = jnp.zeros(len(edges) + 1, jnp.float32).at[bins].add(counted)
    return counts / jnp.maximum(jnp.sum(counted), 1.0)


def _target_gap(state: AgentState) -> Diagnostics:
    """Return the norm of (params - target params), divided by the norm of the parameters."""
    params, target = trained_params(state.params), trained_params(state.target_params)
    if not jax.tree.leaves(target):
        return {}
    difference = jax.tree.map(jnp.subtract, params, target)
    return {"target_gap": global_norm(difference) / jnp.maximum(global_norm(params), 1e-12)}


def _of_sample(config: Config, replay: PyTree, sample: SampleInfo, weights: Array) -> Diagnostics:
    """Return diagnostics of the draw: age of the rows, fill of the replay, importance weights.

    Age and fill need a known layout, so a custom replay has none. The weights are reported only
    with ``config.replay="prioritized"``.
    """
    found: Diagnostics = {}
    if isinstance(replay, _RINGS):
        slots, envs = replay.storage.flags.shape
        stride = config.start_stride
        starts = -(-slots // stride) * envs  # an index may be slot + generation * starts
        slot = sample.indices % starts // envs * stride
        age = (replay.position - 1 - slot) % slots
        found["sample_age"] = jnp.mean(age.astype(jnp.float32)) * config.num_envs
        found["replay_fill"] = replay.size.astype(jnp.float32) / slots
    if config.replay == "prioritized":
        total, squares = jnp.sum(weights), jnp.sum(jnp.square(weights))
        found["weight_mean"] = jnp.mean(weights)
        found["effective_sample_size"] = jnp.square(total) / jnp.maximum(squares, 1e-12)
    return found


def edges_of(name: str) -> tuple[float, ...]:
    """Return the inner bin edges of the named histogram."""
    return {"abs_td_histogram": ABS_TD_EDGES, "q_histogram": Q_EDGES}[name]


def bin_limits(name: str) -> np.ndarray:
    """Return the upper bin limits, [bins]; the last bin is closed a decade above its lower edge."""
    edges = edges_of(name)
    return np.asarray([*edges, edges[-1] * 10.0])


def quantile(shares: list[float], name: str, level: float) -> float:
    """Estimate a quantile as the upper limit of the bin that contains it.

    Args:
        shares: fraction of the values in each bin.
        name: name of the histogram.
        level: probability of the quantile, from 0 to 1.

    Returns:
        The estimate; NaN if the histogram is empty or not finite.
    """
    total = sum(shares)
    if not total > 0 or not math.isfinite(total):
        return math.nan
    index = int(np.searchsorted(np.cumsum(shares), level * total))
    return float(bin_limits(name)[min(index, len(shares) - 1)])
