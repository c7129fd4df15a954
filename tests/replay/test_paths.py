"""Paths of n-step returns against the slow twin, over streams with every kind of ending."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay import make_prioritized, make_uniform
from tests.oracles import TransitionOracle, rows_from_streams, stack_trees
from tests.replay_cases import CASES, oracle_example, random_streams
from tests.toys import quick_jit

GAMMA = 0.9


def check_path(batch, b, oracle, time, env):
    """Compare the path of one return of a batch with the twin's steps."""
    steps, path = oracle.steps(time, env), batch.path
    length = len(steps)
    np.testing.assert_array_equal(path.included[b], np.arange(oracle.n_step) < length)
    for j, (row, obs) in enumerate(steps):
        after = oracle.row(time + j + 1, env)
        assert path.r_t[b, j] == row.reward
        assert path.discount_t[b, j] == np.float32(0 if row.terminated else GAMMA)
        assert path.a_t[b, j] == after.action
        assert path.behaviour_prob_t[b, j] == after.extras
        np.testing.assert_array_equal(path.obs_t[b, j], obs)


FAST = {("bits", make_uniform), ("stacked_bits_k4", make_prioritized)}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, marks=[] if (name, make) in FAST else pytest.mark.slow)
        for name in ("bits", "stacked_bits_k4", "smallest_stacked")
        for make in (make_uniform, make_prioritized)
    ],
)
def test_paths_equal_the_twin(make, name):
    case = CASES[name]
    sizes = {
        field: getattr(case, field)
        for field in ("num_envs", "rows_per_env", "rows_per_add", "n_step", "frame_stack")
    }
    plain, replay = (make(**sizes, batch_size=64, paths=paths) for paths in (False, True))
    streams = random_streams(case, np.random.default_rng(7), wraps=3, skip=1)
    rows = rows_from_streams(
        streams, obs_shape=case.obs_shape, obs_dtype=case.obs_dtype, with_extras=True
    )
    rows = [row._replace(extras=row.extras["prob"]) for row in rows]
    oracle = TransitionOracle(
        num_envs=case.num_envs, rows_per_env=case.rows_per_env, n_step=case.n_step,
        frame_stack=case.frame_stack,
    )  # fmt: skip
    add, sample, sample_plain = map(quick_jit, (replay.add, replay.sample, plain.sample))
    state, checked = replay.init(oracle_example(rows)), 0
    for start in range(0, len(rows), case.rows_per_add):
        chunk = rows[start : start + case.rows_per_add]
        state = add(state, stack_trees(chunk))
        oracle.add(chunk)
        valid = oracle.valid_starts()
        if not valid:
            continue
        key = jax.random.key(start)
        batch, info = sample(key, state, jnp.float32(GAMMA))
        without, _ = sample_plain(key, state, jnp.float32(GAMMA))
        for field in ("obs_tm1", "a_tm1", "r_t", "discount_t"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(without, field))
        batch = jax.tree.map(np.asarray, batch)
        num_rows = case.num_envs * case.rows_per_env
        for b, index in enumerate(np.asarray(info.indices) % num_rows):
            check_path(batch, b, oracle, *valid[int(index)])
            checked += batch.path.included[b].sum() > 1
    assert checked > 50
