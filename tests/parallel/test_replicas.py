"""Data-parallel replicas: state that is equal on all devices, and state that differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.communication.compression import ResidualState
from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.data_parallel import state_sharding
from jaxdqn.replay import tree_bytes
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Row, counter_int
from tests.parallel.cases import MAPPINGS, compiled_chunk, config_over, trainer_over_devices
from tests.toys import noisy, quick_jit
from tests.trees import as_arrays, assert_identical, assert_near, slice_of

ITERATIONS = 100


@pytest.fixture(
    scope="module", params=[2, *(pytest.param(d, marks=pytest.mark.slow) for d in (4, 8))]
)
def replicas(request):
    """A run of a hundred iterations over devices."""
    config = config_over(request.param, epsilon_ladder=7.0)
    trainer = trainer_over_devices(config)
    state = quick_jit(trainer.init)(jax.random.key(0))
    chunk = quick_jit(trainer.chunk(ITERATIONS))
    return config, chunk, state, *chunk(state)


def test_pmap_equals_shard_map_bitwise(replicas):
    config, _, start, end, metrics = replicas
    mapped = quick_jit(trainer_over_devices(config, "pmap").chunk(ITERATIONS))
    other_end, other_metrics = mapped(start)
    assert_identical(other_end, end)
    assert_identical(other_metrics, metrics)


@pytest.mark.slow
def test_pmap_fills_the_replay_as_shard_map_does():
    rows = Row(
        obs=jnp.arange(5 * 8 * 2, dtype=jnp.float32).reshape(5, 1, 8, 2),
        first=jnp.zeros((5, 1, 8), bool).at[0].set(True),
        action=jnp.zeros((5, 1, 8), jnp.int32),
        reward=jnp.ones((5, 1, 8)),
        terminated=jnp.zeros((5, 1, 8), bool),
        truncated=jnp.zeros((5, 1, 8), bool).at[-1].set(True),
    )
    states = []
    for mapping in MAPPINGS:
        trainer = trainer_over_devices(config_over(2), mapping)
        loaded = quick_jit(trainer.preload)(jax.random.key(0), rows)
        # Each device has four of the eight environments, in their order.
        stored = np.moveaxis(np.asarray(loaded.replay.storage.obs[:, :5]), 0, 1)
        np.testing.assert_array_equal(stored.reshape(5, 8, 2), rows.obs[:, 0])
        states.append((loaded, quick_jit(trainer.refill)(loaded)))
    assert_identical(*states)


@pytest.mark.parametrize("replicas", [2], indirect=True)
def test_replicas_stay_equal_for_a_thousand_iterations(replicas):
    _, chunk, _, state, _ = replicas
    for _ in range(9):
        state, _ = chunk(state)
    for leaf in jax.tree.leaves(as_arrays((state.agent, state.hyper, state.counters))):
        np.testing.assert_array_equal(leaf[1], leaf[0])
    assert counter_int(slice_of(state.counters.gradient_steps, 0)) == 10 * ITERATIONS


def test_learned_state_is_equal_on_all_devices(replicas):
    config, _, start, end, _ = replicas
    for shared in ("agent", "hyper", "counters"):
        for leaf in jax.tree.leaves(getattr(end, shared)):
            assert leaf.shape[0] == config.devices
            assert leaf.sharding.is_equivalent_to(
                state_sharding(jax.devices()[: config.devices]), leaf.ndim
            )
            for device in range(1, config.devices):
                np.testing.assert_array_equal(leaf[device], leaf[0])
    moved = [
        np.abs(after[0] - before[0]).max()
        for before, after in zip(
            jax.tree.leaves(start.agent.params), jax.tree.leaves(end.agent.params), strict=True
        )
    ]
    assert min(moved) > 0


def test_experience_differs_between_devices(replicas):
    config, _, start, end, _ = replicas
    per_device = config.num_envs // config.devices
    for state in (start, end):
        assert state.actor.timestep.obs.shape == (config.devices, per_device, 2)
        keys = jax.random.key_data(state.key)
        obs = np.asarray(state.replay.storage.obs)
        for device in range(1, config.devices):
            assert (keys[device] != keys[0]).any()
            size = int(state.replay.size[0])
            same = (obs[device, :size] == obs[0, :size]).all(axis=-1).mean()
            assert same < 0.1  # 1 in 81 by chance


def test_counts_are_over_all_devices(replicas):
    _, _, start, end, metrics = replicas
    size = int(end.replay.size[0])
    assert size == 4 + ITERATIONS
    first = (np.asarray(end.replay.storage.flags[:, :size]) & 1) > 0  # [D, rows, E]
    resets = int(first[:, 1:].sum()) + int(end.actor.timestep.first.sum())
    ends = (np.asarray(end.replay.storage.flags[:, 4:size]) & 6) > 0  # since the warm-up
    counters = slice_of(end.counters, 0)
    rows = 8 * (4 + ITERATIONS)
    assert counter_int(counters.rows) == rows
    assert counter_int(counters.env_steps) == rows - resets
    assert counter_int(counters.gradient_steps) == ITERATIONS
    before = counter_int(jax.tree.map(lambda leaf: leaf[0], start.counters.env_steps))
    assert int(metrics.rows) == 8 * ITERATIONS
    assert int(metrics.env_steps) == rows - resets - before
    assert int(metrics.gradient_steps) == ITERATIONS
    assert int(metrics.episodes) == ends.sum() > 100
    assert metrics.loss.shape == ()


def test_schedule_and_exploration_ladder_are_over_all_devices(replicas):
    *_, metrics = replicas
    epsilon = 1 - 0.95 * np.minimum(8 * np.arange(ITERATIONS) / 500, 1)
    ladder = epsilon[:, None] ** (1 + np.arange(8) / 7 * 7.0)
    np.testing.assert_allclose(metrics.epsilon, ladder.mean(), rtol=1e-4)


@pytest.mark.parametrize("compression", ["none", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_custom_optimizer_receives_the_mean_gradient(compression):
    """Replicas stay equal, and compression keeps its residual."""

    def custom(hyper):
        keep = optax.GradientTransformation(
            lambda params: jax.tree.map(jnp.zeros_like, params),
            lambda updates, state, params=None: (updates, updates),
        )
        return optax.chain(keep, optax.sgd(hyper.learning_rate))

    def trainer_with(compression):
        config = config_over(2, compression=compression)
        trainer = make_trainer(
            config, environment=noisy(), optimizer=custom, collectives=device_collectives(2)
        )
        return across_devices(trainer, jax.devices()[:2])

    first, _ = jax.eval_shape(trainer_with("int8").init, jax.random.key(0)).agent.opt_state
    assert isinstance(first, ResidualState)
    trainer = trainer_with(compression)
    state = quick_jit(trainer.init)(jax.random.key(0))
    end, _ = quick_jit(trainer.chunk(20))(state)
    opt_state = end.agent.opt_state
    if compression == "int8":
        residual, opt_state = opt_state
        assert (residual.residual[0] != residual.residual[1]).any()
    shared = end.agent._replace(opt_state=opt_state)
    for leaf in jax.tree.leaves(shared):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    # The optimiser receives a gradient with the tree of the parameters.
    assert jax.tree.structure(opt_state[0]) == jax.tree.structure(end.agent.params)
    assert all(leaf.any() for leaf in jax.tree.leaves(opt_state[0]))


def keep_value(hyper):
    """Return an optimiser whose state is the loss that it was given last."""

    def update(updates, state, params=None, *, value, **extra):
        del state, params, extra
        return updates, value

    keep = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    return optax.chain(keep, optax.sgd(hyper.learning_rate))


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_custom_optimizer_that_reads_the_loss_receives_its_mean(compression):
    config = config_over(2, compression=compression)
    trainer = across_devices(
        make_trainer(
            config, environment=noisy(), optimizer=keep_value, collectives=device_collectives(2)
        ),
        jax.devices()[:2],
    )
    state = quick_jit(trainer.init)(jax.random.key(0))
    end, metrics = quick_jit(trainer.step)(state)
    opt_state = end.agent.opt_state[1] if compression == "int8" else end.agent.opt_state
    values = np.asarray(opt_state[0])
    assert values[0] == values[1] > 0
    np.testing.assert_allclose(values[0], np.mean(metrics.loss), rtol=1e-6)


@pytest.mark.parametrize(
    ("mapping", "iterations"),
    [
        ("shard_map", 1),
        pytest.param("pmap", 1, marks=pytest.mark.slow),
        pytest.param("shard_map", 3, marks=pytest.mark.slow),
        pytest.param("pmap", 3, marks=pytest.mark.slow),
    ],
)
def test_no_device_copies_its_ring(mapping, iterations):
    temporary = []
    for capacity in (1_000_000, 10_000):
        mapped = trainer_over_devices(config_over(2, replay_capacity=capacity), mapping)
        state, chunk = compiled_chunk(mapped, iterations, quick_jit)
        memory = chunk.memory_analysis()
        assert memory.alias_size_in_bytes >= tree_bytes(state.replay.storage) / 2  # per device
        temporary.append(memory.temp_size_in_bytes)
    assert temporary[0] <= temporary[1] + 1024


@pytest.mark.slow
@pytest.mark.parametrize("data", [1, 2])
def test_sharded_layers_step_as_replicated_ones(data):
    """One iteration from each of 20 states, on data x model devices and on data devices."""
    config = config_over(data, hidden_sizes=(32, 1024))
    plain = trainer_over_devices(config)
    split = make_mapped_trainer(
        dataclasses.replace(config, devices=2 * data, model_devices=2), environment=noisy()
    )
    state = quick_jit(plain.init)(jax.random.key(0))
    layout = split.sharding(state)
    step = quick_jit(plain.step)
    split_step = quick_jit(split.step, out_shardings=(layout, None))
    for _ in range(20):
        after, metrics = step(state)
        divided = jax.device_put(jax.device_get(state), layout)
        split_after, split_metrics = split_step(divided)
        assert_near(split_after, after, 1e-5)
        assert_near(split_metrics, metrics, 1e-5)
        state = after
