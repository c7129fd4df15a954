"""Observations normalised by running statistics: against NumPy, over devices, and in runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jaxdqn.communication.collectives import (
    DEVICE_AXIS,
    device_collectives,
    identity_collectives,
)
from jaxdqn.config.config import Config
from jaxdqn.networks import make_network
from jaxdqn.networks.normalized import (
    first_statistics,
    normalize,
    of_trained,
    update_statistics,
    with_normalization,
)
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import NormalizedParams, ObservationStatistics
from tests.networks.test_build import _spec
from tests.toys import bitwise_jit, noisy, quick_jit, tiny
from tests.training.test_arbitrary_final_observations import corridor
from tests.trees import assert_identical

CONFIG = tiny(normalize_observations=True, warmup_rows=32, epsilon_schedule="constant")


def empty(shape=(3,)):
    zeros = jnp.zeros(shape)
    return NormalizedParams((), ObservationStatistics(zeros, jnp.ones(shape), jnp.float32(0)))


def batches(offset=0.0, shape=(3,), count=5):
    """Return observations [count, K, E, O] with another mean and deviation for each element."""
    rng = np.random.default_rng(0)
    scale = np.float32([0.1, 1, 30][: shape[-1]])
    return (offset + scale * rng.normal(size=(count, 2, 8, *shape))).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_statistics_are_the_mean_and_variance_of_all_rows(offset):
    data = batches(offset)
    params = first_statistics(empty(), data[0, 0], identity_collectives)
    for obs in data:
        params = update_statistics(params, obs, identity_collectives)
    rows = data.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(params.observations.mean, rows.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(params.observations.variance, rows.var(0), rtol=2e-3)
    assert params.observations.rows == len(rows)


def test_devices_have_the_statistics_of_all_their_rows():
    data = batches(5.0).reshape(5, 2, 4, 2, 3)

    def run(data):  # [5, K, E, O] of one device
        collectives = device_collectives(4)
        params = first_statistics(empty(), data[0, 0], collectives)
        for obs in data:
            params = update_statistics(params, obs, collectives)
        return params.observations

    found = jax.vmap(run, axis_name=DEVICE_AXIS)(np.moveaxis(data, 2, 0))
    rows = data.reshape(-1, 3)
    for device in range(4):
        np.testing.assert_allclose(found.mean[device], rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.variance[device], rows.var(0), rtol=1e-4)
        assert found.rows[device] == len(rows)


def test_observations_become_deviations_of_unit_variance():
    data = batches(7.0)
    params = empty()
    for obs in data:
        params = update_statistics(params, obs, identity_collectives)
    normal = np.asarray(normalize(data.reshape(-1, 3), params.observations))
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std(0), 1, rtol=1e-3)
    stacked = normalize(np.stack([data[0, 0], data[1, 1]], -1), params.observations)
    np.testing.assert_array_equal(stacked[..., 1], normalize(data[1, 1], params.observations))
    far = normalize(np.full((1, 3), 1e9, np.float32), params.observations)
    np.testing.assert_array_equal(far, np.full((1, 3), 10.0))


def test_stacks_count_their_newest_frame():
    data = batches()[0]
    stacks = np.stack([np.full_like(data, 100.0), data], -1)
    expected = update_statistics(empty(), data, identity_collectives)
    assert_identical(update_statistics(empty(), stacks, identity_collectives), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_left_out(value):
    data = batches(5.0)
    broken = data.copy()
    broken[:, 0, 3, 1] = value  # one row in every iteration
    params = first_statistics(empty(), broken[0, 0], identity_collectives)
    for obs in broken:
        params = update_statistics(params, obs, identity_collectives)
    rows = broken.reshape(-1, 3)
    rows = rows[np.isfinite(rows).all(1)].astype(np.float64)
    assert params.observations.rows == len(rows) == 75
    np.testing.assert_allclose(params.observations.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(params.observations.variance, rows.var(0), rtol=1e-4)


def test_an_iteration_without_a_finite_row_leaves_the_statistics_as_they_were():
    data = batches()[0]
    nothing = np.full_like(data, np.nan)
    start = first_statistics(empty(), nothing[0], identity_collectives)
    assert_identical(start, empty())
    assert_identical(update_statistics(start, nothing, identity_collectives), start)
    before = update_statistics(start, data, identity_collectives)
    assert_identical(update_statistics(before, nothing, identity_collectives), before)


def test_elements_whose_square_overflows_keep_their_statistics():
    data = batches()
    before = update_statistics(empty(), data[0], identity_collectives)
    large = data[1].copy()
    large[0, 0, 1] = 1e30
    after = update_statistics(before, large, identity_collectives).observations
    whole = update_statistics(before, data[1], identity_collectives).observations
    for name in ("mean", "variance"):
        new, old, expected = (
            np.asarray(getattr(each, name)) for each in (after, before.observations, whole)
        )
        assert new[1] == old[1]
        np.testing.assert_array_equal(new[[0, 2]], expected[[0, 2]])


def test_nan_in_terminal_observations_does_not_stop_the_statistics():
    config = tiny(hidden_sizes=(8,), normalize_observations=True)
    trainer = make_trainer(config, environment=corridor(jnp.float32(jnp.nan)))
    state, metrics = quick_jit(trainer.chunk(12))(quick_jit(trainer.init)(jax.random.key(0)))
    statistics = state.agent.params.observations
    assert metrics.episodes > 0
    iterations = 12 * config.num_envs * config.rollout_length
    assert iterations < statistics.rows < config.warmup_rows + iterations
    # An observation is one-hot, so its elements are fractions of the rows.
    np.testing.assert_allclose(statistics.mean.sum(), 1, rtol=1e-4)
    np.testing.assert_allclose(
        statistics.variance, statistics.mean * (1 - statistics.mean), rtol=1e-3
    )


def test_no_optimizer_changes_the_statistics():
    params = update_statistics(empty(), batches(3.0)[0], identity_collectives)
    params = params._replace(network={"w": jnp.ones(2)})
    decay = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-0.1))
    decaying = of_trained(lambda hyper: decay)(None)
    state = decaying.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = decaying.update(grads, state, params)
    after = optax.apply_updates(params, updates)
    assert_identical(after.observations, params.observations)
    assert (after.network["w"] < 0.95).all()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_only_float_observations_are_normalised(dtype):
    message = f"normalize_observations=True: must be False for observations of dtype {dtype}"
    with pytest.raises(ValueError, match=message):
        with_normalization(None, _spec((3,), dtype))


def test_scaling_and_normalising_are_exclusive():
    with pytest.raises(ValueError, match="scale_observations='always': must be auto or never"):
        Config(normalize_observations=True, scale_observations="always")


class Probe(linen.Module):
    """Q of the observation itself, to see what the network is given."""

    @linen.compact
    def __call__(self, obs):
        return obs[:, :2] + 0 * linen.Dense(2)(obs)


@pytest.fixture(scope="module")
def trained():
    trainer = make_trainer(CONFIG, environment=noisy())
    first = quick_jit(trainer.init)(jax.random.key(0))
    last, _ = bitwise_jit(trainer.chunk(5))(first)
    return trainer, first, last


def test_a_run_counts_every_row_that_it_acts(trained):
    _, first, last = trained
    assert first.agent.params.observations.rows == 32
    statistics = last.agent.params.observations
    assert statistics.rows == 32 + 5 * 4
    # The ring holds all rows so far.
    rows = np.asarray(last.replay.ring.rows.obs).reshape(-1, 2)[: int(statistics.rows)]
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, rows.var(0), rtol=1e-4)


def test_the_target_network_keeps_the_statistics_it_was_copied_with(trained):
    _, _, last = trained
    assert last.agent.target_params.observations.rows == 0
    assert isinstance(last.agent.params, NormalizedParams)


@pytest.mark.slow
def test_steps_are_the_scan(trained):
    trainer, first, last = trained
    state = first
    step = bitwise_jit(trainer.step)
    for _ in range(5):
        state, _ = step(state)
    assert_identical(state.agent.params.observations, last.agent.params.observations)


def test_acting_and_evaluation_use_the_statistics_and_keep_them(trained):
    trainer = make_trainer(CONFIG, environment=noisy(), network=Probe())
    _, _, last = trained
    obs = np.float32([[3, 4], [9, 1]])
    network = {"params": {"Dense_0": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}}
    params = NormalizedParams(network, last.agent.params.observations)
    q = trainer.agent.act(jax.random.key(0), params, (), obs, np.zeros(2, bool), None)[2].q
    statistics = last.agent.params.observations
    expected = (obs - np.asarray(statistics.mean)) / np.sqrt(statistics.variance)
    np.testing.assert_allclose(q, expected, rtol=1e-4)


def test_rows_of_a_sequence_are_normalised_as_single_ones():
    config = Config(recurrent="lstm", recurrent_size=4, hidden_sizes=(4,))
    network = with_normalization(make_network(config, _spec((3,))), _spec((3,)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((4, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype("f4"), shapes)
    obs, first = batches(2.0)[:, 0, :4], np.zeros((5, 4), bool)
    carry = network.initial_carry(4)
    outputs, _ = network.unroll(params, None, carry, obs, first)
    for row in range(5):
        output, carry = network.apply(params, None, carry, obs[row], first[row])
        np.testing.assert_allclose(outputs.q_values[row], output.q_values, rtol=1e-4)


def test_a_custom_agent_normalises_for_itself(trained):
    with pytest.raises(ValueError, match="normalize_observations=True: must be False with a custo"):
        make_trainer(CONFIG, environment=noisy(), agent=trained[0].agent)
