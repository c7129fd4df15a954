"""Gather the steps of n-step returns from the ring, for targets with importance ratios."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxdqn.replay.packing import unpack_bits
from jaxdqn.replay.ring import RingState, gather_obs, gather_transitions, returns_at, steps_at, take
from jaxdqn.types import Array, Batch, Path, PyTree


def gather_paths(
    ring: RingState,
    index: Array,
    gamma: Array,
    behaviour_prob: Array,
    *,
    n_step: int,
    frame_stack: int,
) -> Batch:
    """Gather transitions as ``gather_transitions`` does, with their steps as ``Batch.path``.

    ``obs_t`` and ``legal_t`` of the batch are empty, because the path contains them, and so is
    ``extras_tm1``.

    Args:
      ring: the ring.
      index: ``[B]`` int32, flat indices of valid starts
      gamma: ``[]`` float32
      behaviour_prob: ``[T, E]`` float32, the probability of each action when it was chosen
      n_step: N
      frame_stack: S
    """
    r_t, discount_t, _ = returns_at(ring, index, gamma, n_step=n_step)
    reward, terminated, included, rows = steps_at(ring, index, n_step=n_step)
    after = rows[:, 1:]
    obs = gather_obs(ring, after.ravel(), frame_stack=frame_stack)
    legal = ring.rows.legal
    path = Path(
        r_t=reward,
        discount_t=jnp.where(terminated, 0.0, gamma),
        included=included > 0,
        obs_t=obs.reshape(*after.shape, *obs.shape[1:]),
        a_t=take(ring.rows.action, after),
        behaviour_prob_t=take(behaviour_prob, after),
        legal_t=unpack_bits(jax.tree.map(lambda leaf: take(leaf, after), legal)),
    )
    return Batch(
        obs_tm1=gather_obs(ring, index, frame_stack=frame_stack),
        a_tm1=take(ring.rows.action, index),
        r_t=r_t,
        discount_t=discount_t,
        obs_t=(),
        legal_tm1=unpack_bits(jax.tree.map(lambda leaf: take(leaf, index), legal)),
        path=path,
    )


def make_gather(
    *,
    n_step: int,
    frame_stack: int,
    paths: bool,
    behaviour_prob: Callable[[PyTree], Array] = lambda extras: extras,
) -> Callable[[RingState, Array, Array], Batch]:
    """Make ``gather(ring, index[B], gamma) -> batch``, of transitions with or without paths.

    Args:
      n_step: N
      frame_stack: S
      paths: True to gather with ``gather_paths``.
      behaviour_prob: function from the extras of the stored rows to the probability of each action
        [T, E].
    """
    if not paths:
        return partial(gather_transitions, n_step=n_step, frame_stack=frame_stack)
    gather = partial(gather_paths, n_step=n_step, frame_stack=frame_stack)
    return lambda ring, index, gamma: gather(ring, index, gamma, behaviour_prob(ring.rows.extras))
