"""Masks in the replay: those of the rows at both ends of a transition, and their bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay import (
    make_prioritized,
    make_prioritized_sequence,
    make_sequence,
    make_uniform,
)
from jaxdqn.replay.redistribute import redistribute
from jaxdqn.tree import tree_bytes
from jaxdqn.types import Row
from tests.toys import quick_jit

ENVS, SLOTS, ADDS, ACTIONS = 2, 24, 20, 11


def mask_of(code):
    """Return a mask [..., A] that names its row: the binary digits of the code."""
    return np.asarray(code)[..., None] >> np.arange(ACTIONS) & 1 > 0


def rows_at(time):
    code = 2 + time * ENVS + np.arange(ENVS, dtype=np.int32)
    rng = np.random.default_rng(time)
    no = np.zeros(ENVS, bool)
    return Row(
        obs=code[:, None].astype(np.float32), first=no | (time % 7 == 0), action=code,
        reward=code.astype(np.float32), terminated=rng.random(ENVS) < 0.2, truncated=no,
        legal=mask_of(code),
    )  # fmt: skip


def filled(replay):
    example = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), rows_at(0))
    state, add = replay.init(example), quick_jit(replay.add)
    for time in range(ADDS, ADDS + SLOTS + 5):
        state = add(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], rows_at(time)))
    return state


SIZES = {"num_envs": ENVS, "rows_per_env": SLOTS, "rows_per_add": 1, "batch_size": 64}


@pytest.mark.parametrize(
    "replay",
    [make_uniform(**SIZES), make_uniform(**SIZES, n_step=3), make_prioritized(**SIZES, n_step=2)],
    ids=["uniform", "three steps", "prioritized"],
)
def test_a_transition_has_the_masks_of_its_start_and_of_its_bootstrap(replay):
    sample = quick_jit(replay.sample)
    batch, _ = sample(jax.random.key(0), filled(replay), jnp.float32(0.9))
    assert batch.legal_tm1.dtype == batch.legal_t.dtype == bool
    np.testing.assert_array_equal(batch.legal_tm1, mask_of(batch.a_tm1))
    np.testing.assert_array_equal(batch.legal_t, mask_of(batch.obs_t[:, 0].astype(jnp.int32)))
    assert (np.asarray(batch.obs_t) != batch.obs_tm1).all()


@pytest.mark.parametrize("make", [make_sequence, make_prioritized_sequence])
def test_a_sequence_has_the_masks_of_its_rows(make):
    replay = make(**SIZES, length=5, stride=2)
    rows, _ = quick_jit(replay.sample)(jax.random.key(0), filled(replay), jnp.float32(0.9))
    assert rows.legal.shape == (64, 5, ACTIONS)
    np.testing.assert_array_equal(rows.legal, mask_of(rows.action))


def test_a_mask_takes_a_bit_for_each_action_and_nothing_without_one():
    replay = make_uniform(**SIZES)
    example = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), rows_at(0))
    masked, plain = (
        tree_bytes(jax.eval_shape(replay.init, row))
        for row in (example, example._replace(legal=()))
    )
    assert masked - plain == ENVS * SLOTS * 2  # eleven bits are two bytes


def test_masks_move_with_their_rows_to_other_devices():
    replay = make_uniform(**SIZES)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[None], filled(replay))
    moved = redistribute(state, 2)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[1]), moved)
    small = make_uniform(**{**SIZES, "num_envs": 1})
    batch, _ = quick_jit(small.sample)(jax.random.key(1), one, jnp.float32(0.9))
    np.testing.assert_array_equal(batch.legal_tm1, mask_of(batch.a_tm1))
