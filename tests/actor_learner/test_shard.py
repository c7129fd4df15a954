"""A shard with several rings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxdqn.actor_learner.shard import ShardFunctions, make_shard
from jaxdqn.config.config import Config, replace
from jaxdqn.replay.sum_tree import total
from jaxdqn.types import Row
from tests.toys import quick_jit

CONFIG = Config(
    replay="prioritized", num_envs=4, batch_size=64, replay_capacity=128, warmup_rows=64
)


def rows(count: int, value: float, num_envs: int = 2) -> Row:
    """Return rows [count, 1, E] of one episode whose rewards are ``value``."""
    shape = (count, 1, num_envs)
    no = jnp.zeros(shape, jnp.bool_)
    obs = jnp.zeros((*shape, 4), jnp.float32)
    reward = jnp.full(shape, value, jnp.float32)
    return Row(obs, no, jnp.zeros(shape, jnp.int32), reward, no, no)


def compiled_shard(config: Config, rings: int) -> ShardFunctions:
    """Return a shard of compiled functions, for rows of two environments."""
    return ShardFunctions(*map(quick_jit, make_shard(config, num_envs=2, rings=rings)))


def example() -> Row:
    return jax.tree.map(lambda leaf: leaf[0, 0, 0], rows(1, 0.0))


def test_draws_go_over_rings_in_proportion_to_their_sums() -> None:
    shard = compiled_shard(CONFIG, rings=3)
    state = shard.init(example())
    # 3, 0 and 9 valid starts for each environment: the newest row has no successor.
    state = (shard.add(state[0], rows(4, 1.0)), state[1], shard.add(state[2], rows(10, 3.0)))
    draws = shard.sample(jax.random.split(jax.random.key(0), 4), state, jnp.float32(0.9))
    counts = [int(jnp.sum(draws.rings == ring)) for ring in range(3)]
    assert counts == [64, 0, 192]  # stratified: exactly a quarter of each batch of 64
    np.testing.assert_array_equal(draws.batches.r_t, jnp.where(draws.rings == 0, 1.0, 3.0))
    np.testing.assert_allclose(draws.info.probabilities, 1 / 24, rtol=1e-6)
    assert float(draws.mass) == 24.0


def test_priorities_go_back_to_the_ring_of_each_row_and_not_to_overwritten_rows() -> None:
    shard = compiled_shard(CONFIG, rings=2)
    state = shard.init(example())
    state = (shard.add(state[0], rows(4, 1.0)), shard.add(state[1], rows(4, 3.0)))
    draws = shard.sample(jax.random.key(0)[None], state, jnp.float32(0.9))
    priorities = jnp.where(draws.rings == 0, 2.0, 5.0)
    changed = shard.update(state, draws, priorities)
    # 64 stratified draws of 12 rows of equal priority meet each of them.
    assert [float(total(ring.tree)) for ring in changed] == [12.0, 30.0]
    # The rows of ring 1 are overwritten before the priorities come: the new ones keep theirs.
    state = (state[0], shard.add(state[1], rows(32, 3.0)))
    changed = shard.update(state, draws, priorities)
    assert [float(total(ring.tree)) for ring in changed] == [12.0, float(total(state[1].tree))]


def test_a_stratum_over_two_rings_draws_each_of_their_rows_equally_often() -> None:
    shard = compiled_shard(replace(CONFIG, batch_size=1), rings=2)
    state = shard.init(example())
    state = (shard.add(state[0], rows(4, 1.0)), shard.add(state[1], rows(10, 3.0)))
    draws = shard.sample(jax.random.split(jax.random.key(0), 2400), state, jnp.float32(0.9))
    rows_drawn = np.stack([np.ravel(draws.rings), np.ravel(draws.info.indices)])
    counts = np.unique(rows_drawn, axis=1, return_counts=True)[1]
    assert counts.size == 24
    assert stats.chisquare(counts).pvalue > 1e-3
