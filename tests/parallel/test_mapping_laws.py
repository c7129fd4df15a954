"""Mappings take a trainer and give a trainer: what stays the same, and what must differ."""

import dataclasses
import re
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.communication.collectives import DEVICE_AXIS, identity_collectives
from jaxdqn.communication.compression import ResidualState
from jaxdqn.networks import make_network
from jaxdqn.parallel import across_devices, across_mesh, device_collectives, population
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.data_parallel import state_sharding
from jaxdqn.replay import tree_bytes
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Row, counter_int
from tests.toys import noisy, quick_jit, tiny

MAPPINGS = ("shard_map", "pmap")


def spread(config, mapping="shard_map"):
    """Return the configuration's trainer over as many devices as it says."""
    trainer = make_trainer(
        config, environment=noisy(), collectives=device_collectives(config.devices)
    )
    return across_devices(trainer, jax.devices()[: config.devices], mapping=mapping)


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
        "epsilon_decay_rows": 500,
        "clip_norm": 0.5,
    }
    return tiny(devices=devices, **{**values, **overrides})


def assert_near(one, other, tolerance):
    """Hold floats to an absolute and a relative tolerance, everything else to the bit."""

    def near(a, b):
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(near, as_bits(one), as_bits(other))


def slice_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def lowered(trainer, iterations, jit=jax.jit):
    """Compile a chunk as a run does: the state laid out, and donated."""
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    out = None
    if trainer.sharding is not None:
        out = trainer.sharding(state)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            out,
        )
    chunk = jit(trainer.chunk(iterations), donate_argnums=0, out_shardings=(out, None))
    return state, chunk.lower(state).compile()


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


STEPS = 20


class Alone(NamedTuple):
    """The trainer of one device and its compiled functions."""

    trainer: Any
    init: Any
    step: Any
    chunk: Any
    """Takes the state's buffers."""
    start: Any
    end: Any
    metrics: Any


@pytest.fixture(scope="module")
def alone():
    """The trainer without a mapping, and a chunk of its run."""
    trainer = make_trainer(config_over(1), environment=noisy())
    init, step = jax.jit(trainer.init), jax.jit(trainer.step)
    _, chunk = lowered(trainer, STEPS)
    start = init(jax.random.key(0), hyper_from(config_over(1)))
    return Alone(trainer, init, step, chunk, start, *chunk(copied(start)))


def test_a_scan_is_the_python_loop_to_the_bit(alone):
    state, all_metrics = alone.start, []
    for _ in range(STEPS):
        state, metrics = alone.step(state)
        all_metrics.append(metrics)
    assert_identical(state, alone.end)
    for name in ("rows", "env_steps", "gradient_steps", "episodes", "return_sum", "length_sum"):
        looped = sum(float(getattr(metrics, name)) for metrics in all_metrics)
        np.testing.assert_allclose(getattr(alone.metrics, name), looped, rtol=1e-6)
    losses = [float(metrics.loss) for metrics in all_metrics]
    np.testing.assert_allclose(alone.metrics.loss, np.mean(losses), rtol=1e-6)


@pytest.fixture(scope="module", params=MAPPINGS)
def single(alone, request):
    """The trainer mapped over one device, and its chunk compiled."""
    mapped = across_devices(alone.trainer, jax.devices()[:1], mapping=request.param)
    return mapped, lowered(mapped, STEPS)[1]


def test_one_device_is_the_unmapped_trainer_to_the_bit(alone, single):
    mapped, chunk = single
    start = jax.jit(mapped.init, out_shardings=state_sharding(jax.devices()[:1]))(jax.random.key(0))
    assert_identical(slice_of(start, 0), alone.start)
    end, metrics = chunk(start)
    assert_identical(slice_of(end, 0), alone.end)
    assert_identical(metrics, alone.metrics)


def operations(compiled):
    """Count the operations of a compiled program by kind."""
    found = re.findall(r"^\s+(?:ROOT )?\S+ = .*?[\])}] ([a-z\-]+)\(", compiled.as_text(), re.M)
    # Neither computes anything: the axis [1] comes off and on by bitcasts.
    return Counter(name for name in found if name not in ("bitcast", "parameter"))


def test_one_device_takes_no_more_operations_than_none(alone, single):
    _, chunk = single
    plain, mapped = operations(alone.chunk), operations(chunk)
    assert plain["dot"] >= 4
    assert plain["while"] >= 1
    assert not plain - mapped
    # The copy is of one int32: a count, whose old value the new state is not to overwrite.
    assert set(mapped - plain) <= {"copy"}
    assert (mapped - plain).total() <= 1
    before, after = alone.chunk.cost_analysis(), chunk.cost_analysis()
    assert after["flops"] == before["flops"] > 0
    assert after["bytes accessed"] <= before["bytes accessed"] + 4


def test_a_trainer_that_does_not_fit_the_devices_is_refused(alone, single):
    pair = make_trainer(config_over(2), environment=noisy(), collectives=device_collectives(2))
    assert (alone.trainer.replicas, pair.replicas) == (1, 2)
    said = r"^trainer\.replicas={}: must be {}, .*make_trainer\(config{}\) with Config\({}\)$"
    of_two = r", collectives=device_collectives\(2\)"
    for mapping in MAPPINGS:
        with pytest.raises(ValueError, match=said.format(1, 2, of_two, "devices=2")):
            across_devices(alone.trainer, jax.devices()[:2], mapping=mapping)
    with pytest.raises(ValueError, match=said.format(2, 1, "", "devices=1")):
        across_devices(pair, jax.devices()[:1])
    with pytest.raises(ValueError, match=said.format(1, 2, of_two, "devices=4, model_devices=2")):
        across_mesh(alone.trainer, jax.devices()[:4], 2)
    for mapped in (single[0], population(alone.trainer, 2)):
        with pytest.raises(ValueError, match=r"^trainer\.mapped=True: must be False"):
            across_devices(mapped, jax.devices()[:1])
        with pytest.raises(ValueError, match=r"^trainer\.mapped=True: must be False"):
            across_mesh(mapped, jax.devices()[:2], 2)


ITERATIONS = 100


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow), 8])
def replicas(request):
    """A hundred iterations over devices."""
    config = config_over(request.param, epsilon_ladder=7.0)
    trainer = spread(config)
    state = quick_jit(trainer.init)(jax.random.key(0))
    chunk = jax.jit(trainer.chunk(ITERATIONS))
    return config, chunk, state, *chunk(state)


def test_pmap_is_shard_map_to_the_bit(replicas):
    config, _, start, end, metrics = replicas
    mapped = jax.jit(spread(config, "pmap").chunk(ITERATIONS))
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
        trainer = spread(config_over(2), mapping)
        loaded = quick_jit(trainer.preload)(jax.random.key(0), rows)
        # Of the eight environments each device has four, in their order.
        stored = np.moveaxis(np.asarray(loaded.replay.storage.obs[:, :5]), 0, 1)
        np.testing.assert_array_equal(stored.reshape(5, 8, 2), rows.obs[:, 0])
        states.append((loaded, quick_jit(trainer.refill)(loaded)))
    assert_identical(*states)


@pytest.mark.parametrize("replicas", [2], indirect=True)
def test_replicas_stay_the_same_for_a_thousand_iterations(replicas):
    _, chunk, _, state, _ = replicas
    for _ in range(9):
        state, _ = chunk(state)
    for leaf in jax.tree.leaves(as_bits((state.agent, state.hyper, state.counters))):
        np.testing.assert_array_equal(leaf[1], leaf[0])
    assert counter_int(slice_of(state.counters.gradient_steps, 0)) == 10 * ITERATIONS


def test_every_device_holds_the_same_learner(replicas):
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


def test_every_device_sees_other_experience(replicas):
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


def test_schedule_and_ladder_are_over_all_devices(replicas):
    *_, metrics = replicas
    epsilon = 1 - 0.95 * np.minimum(8 * np.arange(ITERATIONS) / 500, 1)
    ladder = epsilon[:, None] ** (1 + np.arange(8) / 7 * 7.0)
    np.testing.assert_allclose(metrics.epsilon, ladder.mean(), rtol=1e-4)


@pytest.mark.parametrize("compression", ["none", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_users_own_optimizer_is_given_the_mean_gradient(compression):
    """So replicas stay equal, and compression keeps what it has yet to send."""

    def own(hyper):
        keep = optax.GradientTransformation(
            lambda params: jax.tree.map(jnp.zeros_like, params),
            lambda updates, state, params=None: (updates, updates),
        )
        return optax.chain(keep, optax.sgd(hyper.learning_rate))

    def trainer_with(compression):
        config = config_over(2, compression=compression)
        trainer = make_trainer(
            config, environment=noisy(), optimizer=own, collectives=device_collectives(2)
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
    # The optimiser sees the tree of the parameters.
    assert jax.tree.structure(opt_state[0]) == jax.tree.structure(end.agent.params)
    assert all(leaf.any() for leaf in jax.tree.leaves(opt_state[0]))


@pytest.mark.parametrize(
    ("devices", "optimizer", "clip"),
    [
        (2, "adam", {"clip_norm": 0.5}),
        (4, "adam", {"clip_value": 0.05}),
        (4, "rmsprop", {"clip_norm": 0.5}),
        pytest.param(2, "rmsprop", {"clip_value": 0.05}, marks=pytest.mark.slow),
    ],
)
def test_shares_of_a_batch_on_devices_are_the_whole_batch_on_one(alone, devices, optimizer, clip):
    """One step from each of 20 states of a run, on rows from a replay, clipped."""
    config = config_over(
        1, optimizer=optimizer, adam_epsilon=1e-2, learning_rate=0.01, **{"clip_norm": None, **clip}
    )
    hyper, size = hyper_from(config), config.batch_size

    def agent_of(collectives):
        network = make_network(config, noisy().spec)
        return make_agent(network, make_optimizer(config, collectives), target_period=5)

    whole_batch, shares = agent_of(identity_collectives), agent_of(device_collectives(devices))
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (DEVICE_AXIS,))
    whole, split = PartitionSpec(), PartitionSpec(DEVICE_AXIS)

    def learn_by(agent):
        return lambda state, batch, weights: agent.learn(
            jax.random.key(1), state, batch, weights, hyper=hyper
        )

    learn = quick_jit(learn_by(whole_batch))
    learn_shares = quick_jit(
        jax.shard_map(
            lambda *given: learn_by(shares)(*given)[0],
            mesh=mesh,
            in_specs=(whole, split, split),
            out_specs=whole,
            check_vma=False,
        )
    )
    of_each = quick_jit(jax.vmap(lambda *given: learn_by(whole_batch)(*given)[1], (None, 0, 0)))
    sample = quick_jit(make_replay(config).sample)
    weights = jnp.linspace(0.1, 1.0, size)
    state = whole_batch.init(jax.random.key(0), jnp.ones((1, 2)), hyper=hyper)
    moved = 0.0
    for key in jax.random.split(jax.random.key(2), 20):
        batch, _ = sample(key, alone.end.replay, hyper.gamma)
        expected, info = learn(state, batch, weights)
        learned = learn_shares(state, batch, weights)
        # A mean of B numbers, added up in another order, moves by at most 2 B u of the mean of
        # their magnitudes (u = 2^-24), which the norms of the examples' gradients bound; a
        # product inside the network, of 16 numbers at most, the same. Clipping makes it no larger.
        singles = of_each(state, *jax.tree.map(lambda leaf: leaf[:, None], (batch, weights)))
        error = 4 * size * 2**-24 * float(np.mean(singles.grad_norm))
        # An update is a m / (sqrt(v) + epsilon). m and sqrt(v) move by no more than the gradient
        # does, and |m| / sqrt(v) is below 4 (RMSProp: at most 1 / sqrt(0.1); Adam: less).
        step = 5 * config.learning_rate / config.adam_epsilon * error
        assert_near(learned.opt_state, expected.opt_state, 8 * error)
        for name in ("params", "target_params"):
            of_params = getattr(learned, name), getattr(expected, name)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=2**-22, atol=step), *of_params)
        assert int(learned.since_target) == int(expected.since_target)
        assert step < 1e-3
        changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected.params, state.params)
        moved = max(moved, *jax.tree.leaves(changes))
        assert float(info.grad_norm) > 0.5  # so that either clipping does something
        state = expected
    assert moved > 5e-3


@pytest.mark.parametrize(
    ("mapping", "iterations"),
    [
        ("shard_map", 1),
        ("pmap", 1),
        pytest.param("shard_map", 3, marks=pytest.mark.slow),
        pytest.param("pmap", 3, marks=pytest.mark.slow),
    ],
)
def test_no_device_copies_its_ring(mapping, iterations):
    temporary = []
    for capacity in (1_000_000, 10_000):
        mapped = spread(config_over(2, replay_capacity=capacity), mapping)
        state, chunk = lowered(mapped, iterations, quick_jit)
        memory = chunk.memory_analysis()
        assert memory.alias_size_in_bytes >= tree_bytes(state.replay.storage) / 2  # of a device
        temporary.append(memory.temp_size_in_bytes)
    assert temporary[0] <= temporary[1] + 1024


def learners_of(size):
    """Return keys and hyper-parameters [P], all of them different."""
    hyper = jax.tree.map(lambda leaf: jnp.full(size, leaf), hyper_from(config_over(1)))
    rates = jnp.linspace(1e-4, 1e-2, size)
    return jax.random.split(jax.random.key(7), size), hyper._replace(learning_rate=rates)


@pytest.mark.parametrize(("size", "devices"), [(3, 0), (4, 2)])
@pytest.mark.slow
def test_a_population_one_by_one_is_separate_runs_to_the_bit(alone, size, devices):
    keys, hyper = learners_of(size)
    many = population(alone.trainer, size, devices=jax.devices()[:devices], how="map")
    start = jax.jit(many.init)(keys, hyper)
    end, metrics = jax.jit(many.chunk(STEPS))(start)
    for index in range(size):
        begun = alone.init(keys[index], slice_of(hyper, index))
        assert_identical(slice_of(start, index), begun)
        ended, measured = alone.chunk(copied(begun))
        assert_identical(slice_of(end, index), ended)
        assert_identical(slice_of(metrics, index), measured)


@pytest.mark.parametrize("devices", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_population_side_by_side_steps_as_separate_runs_do(alone, devices):
    """One iteration from each of 20 states: a flipped argmax would part whole runs."""
    keys, hyper = learners_of(4)
    many = population(alone.trainer, 4, devices=jax.devices()[:devices], how="vmap")
    begun = [alone.init(keys[index], slice_of(hyper, index)) for index in range(4)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)
    step = quick_jit(many.step)
    for _ in range(20):
        after, metrics = step(state)
        before, stepped, metrics = jax.device_get((state, after, metrics))
        for index in range(4):
            expected, measured = alone.step(slice_of(before, index))
            assert_near(slice_of(stepped, index), expected, 1e-6)
            assert_near(slice_of(metrics, index), measured, 1e-6)
        state = after


@pytest.mark.slow
@pytest.mark.parametrize("data", [1, 2])
def test_split_layers_step_as_whole_ones_do(data):
    """One iteration from each of 20 states of a run, over data x model devices and over data."""
    config = config_over(data, hidden_sizes=(32, 1024))
    plain = spread(config)
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
