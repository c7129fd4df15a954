"""Mappings take a trainer and give a trainer: what stays the same, and what must differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdqn.agent import make_agent
from jaxdqn.mappings import across_devices, device_collectives
from jaxdqn.mappings.devices import DEVICE_AXIS, state_sharding
from jaxdqn.networks import make_network
from jaxdqn.optim import make_optimizer
from jaxdqn.replay import tree_bytes
from jaxdqn.trainer import hyper_from, make_chunk, make_trainer
from jaxdqn.types import ALONE, Batch, counter_int
from tests.toys import noisy, quick_jit, tiny


def spread(config):
    """Return the configuration's trainer over as many devices as it says."""
    trainer = make_trainer(
        config, environment=noisy(), collectives=device_collectives(config.devices)
    )
    return across_devices(trainer, jax.devices()[: config.devices])


def as_bits(tree):
    """Return the leaves as NumPy arrays, keys as their words."""

    def bits(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(bits, tree)


def assert_identical(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, as_bits(one), as_bits(other))


def config_over(devices, **overrides):
    values = {
        "num_envs": 8,
        "batch_size": 16,
        "replay_capacity": 1024,
        "epsilon_decay_steps": 500,
        "clip_norm": 0.5,
    }
    return tiny(devices=devices, **{**values, **overrides})


def test_one_device_is_the_unmapped_trainer_to_the_bit():
    config = config_over(1)
    plain = make_trainer(config, environment=noisy())
    outcomes = []
    for trainer in (plain, spread(config)):
        state = jax.jit(trainer.init)(jax.random.key(0))
        outcomes.append((state, *jax.jit(make_chunk(trainer, 20))(state)))
    (start, end, metrics), (mapped_start, mapped_end, mapped_metrics) = outcomes
    for state, mapped in ((start, mapped_start), (end, mapped_end)):
        assert_identical(jax.tree.map(lambda leaf: leaf[0], mapped), state)
    assert_identical(mapped_metrics, metrics)


ITERATIONS = 100


@pytest.fixture(scope="module", params=[2, 4])
def replicas(request):
    """A hundred iterations over devices."""
    config = config_over(request.param, epsilon_ladder=7.0)
    trainer = spread(config)
    state = quick_jit(trainer.init)(jax.random.key(0))
    chunk = quick_jit(make_chunk(trainer, ITERATIONS))
    return config, state, *chunk(state)


def test_every_device_holds_the_same_learner(replicas):
    config, start, end, _ = replicas
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


def test_every_device_sees_other_experience(replicas):
    config, start, end, _ = replicas
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
    _, start, end, metrics = replicas
    size = int(end.replay.size[0])
    assert size == 4 + ITERATIONS
    first = (np.asarray(end.replay.storage.flags[:, :size]) & 1) > 0  # [D, rows, E]
    resets = int(first[:, 1:].sum()) + int(end.actor.timestep.first.sum())
    ends = (np.asarray(end.replay.storage.flags[:, 4:size]) & 6) > 0  # since the warm-up
    counters = jax.tree.map(lambda leaf: leaf[0], end.counters)
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


def test_schedule_and_ladder_are_over_all_devices(replicas):
    _, _, _, metrics = replicas
    epsilon = 1 - 0.95 * np.minimum(8 * np.arange(ITERATIONS) / 500, 1)
    ladder = epsilon[:, None] ** (1 + np.arange(8) / 7 * 7.0)
    np.testing.assert_allclose(metrics.epsilon, ladder.mean(), rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("clip", [{"clip_norm": 0.5}, {"clip_value": 0.05}])
def test_shares_of_a_batch_on_devices_are_the_whole_batch_on_one(devices, clip):
    """One step from the same state on the same rows, clipped: by the global gradient."""
    size = 16
    rng = np.random.default_rng(0)
    batch = Batch(
        obs_tm1=jnp.asarray(rng.normal(size=(size, 2)), jnp.float32),
        a_tm1=jnp.asarray(rng.integers(2, size=size), jnp.int32),
        # Parts of very different gradients, so that clipping each alone would show.
        r_t=jnp.asarray(np.linspace(-10, 30, size), jnp.float32),
        discount_t=jnp.full(size, 0.9),
        obs_t=jnp.asarray(rng.normal(size=(size, 2)), jnp.float32),
    )
    weights = jnp.linspace(0.1, 1.0, size)
    # An epsilon of 1 keeps the step nearly proportional to the clipped gradient.
    config = tiny(batch_size=size, optimizer="rmsprop", adam_epsilon=1.0, learning_rate=0.1, **clip)
    hyper = hyper_from(config)

    def agent_of(collectives):
        network = make_network(config, noisy().spec)
        return make_agent(network, make_optimizer(config, collectives))

    alone, spread_out = agent_of(ALONE), agent_of(device_collectives(devices))
    state = alone.init(jax.random.key(0), batch.obs_tm1, hyper=hyper)
    expected, _ = quick_jit(alone.learn)(jax.random.key(1), state, batch, weights, hyper=hyper)
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (DEVICE_AXIS,))
    whole, split = PartitionSpec(), PartitionSpec(DEVICE_AXIS)
    learn = jax.shard_map(
        lambda state, batch, weights: spread_out.learn(
            jax.random.key(1), state, batch, weights, hyper=hyper
        )[0],
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=whole,
        check_vma=False,
    )
    learned = quick_jit(learn)(state, batch, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), learned, expected
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected.params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_no_device_copies_its_ring():
    temporary = []
    for capacity in (1_000_000, 10_000):
        mapped = spread(config_over(2, replay_capacity=capacity))
        state = jax.eval_shape(mapped.init, jax.random.key(0))
        sharding = state_sharding(jax.devices()[:2])
        state = jax.tree.map(
            lambda leaf, sharding=sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            state,
        )
        chunk = jax.jit(make_chunk(mapped, 3), donate_argnums=0)
        memory = chunk.lower(state).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= tree_bytes(state.replay.storage) / 2  # of a device
        temporary.append(memory.temp_size_in_bytes)
    assert temporary[0] <= temporary[1] + 1024
