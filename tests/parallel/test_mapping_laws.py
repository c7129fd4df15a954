"""Laws of the mappings: the relation of a mapped trainer to the unmapped one."""

import re
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.communication.collectives import DEVICE_AXIS, identity_collectives
from jaxdqn.networks import make_network
from jaxdqn.parallel import across_devices, across_mesh, device_collectives, population
from jaxdqn.parallel.data_parallel import state_sharding
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.parallel.cases import MAPPINGS, compiled_chunk, config_over
from tests.toys import bitwise_jit, noisy, quick_jit
from tests.trees import assert_identical, assert_near, slice_of

STEPS = 20
"""Iterations of a compiled chunk."""


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


class Unmapped(NamedTuple):
    """A trainer without a mapping, its compiled functions and one chunk of its run."""

    trainer: Any
    init: Any
    step: Any
    chunk: Any
    """Donates the buffers of the state."""
    start: Any
    end: Any
    metrics: Any


@pytest.fixture(scope="module")
def unmapped():
    """The trainer without a mapping and a chunk of its run."""
    trainer = make_trainer(config_over(1), environment=noisy())
    init, step = bitwise_jit(trainer.init), bitwise_jit(trainer.step)
    _, chunk = compiled_chunk(trainer, STEPS)
    start = init(jax.random.key(0), hyper_from(config_over(1)))
    return Unmapped(trainer, init, step, chunk, start, *chunk(copied(start)))


def test_a_scan_equals_a_python_loop_bitwise(unmapped):
    state, all_metrics = unmapped.start, []
    for _ in range(STEPS):
        state, metrics = unmapped.step(state)
        all_metrics.append(metrics)
    assert_identical(state, unmapped.end)
    for name in ("rows", "env_steps", "gradient_steps", "episodes", "return_sum", "length_sum"):
        looped = sum(float(getattr(metrics, name)) for metrics in all_metrics)
        np.testing.assert_allclose(getattr(unmapped.metrics, name), looped, rtol=1e-6)
    losses = [float(metrics.loss) for metrics in all_metrics]
    np.testing.assert_allclose(unmapped.metrics.loss, np.mean(losses), rtol=1e-6)


@pytest.fixture(scope="module", params=["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def single(unmapped, request):
    """The trainer mapped over one device and its compiled chunk."""
    mapped = across_devices(unmapped.trainer, jax.devices()[:1], mapping=request.param)
    return mapped, compiled_chunk(mapped, STEPS)[1]


def test_a_mapping_over_one_device_equals_the_unmapped_trainer_bitwise(unmapped, single):
    mapped, chunk = single
    start = bitwise_jit(mapped.init, out_shardings=state_sharding(jax.devices()[:1]))(
        jax.random.key(0)
    )
    assert_identical(slice_of(start, 0), unmapped.start)
    end, metrics = chunk(start)
    assert_identical(slice_of(end, 0), unmapped.end)
    assert_identical(metrics, unmapped.metrics)


def operations(compiled):
    """Count the operations of a compiled program by kind."""
    found = re.findall(r"^\s+(?:ROOT )?\S+ = .*?[\])}] ([a-z\-]+)\(", compiled.as_text(), re.M)
    # These two compute nothing; bitcasts remove and add the axis [1].
    return Counter(name for name in found if name not in ("bitcast", "parameter"))


def test_a_mapping_over_one_device_adds_no_operations(unmapped, single):
    _, chunk = single
    plain, mapped = operations(unmapped.chunk), operations(chunk)
    assert plain["dot"] >= 4
    assert plain["while"] >= 1
    assert not plain - mapped
    # The one copy is of an int32 count: the new state must not overwrite its old value.
    assert set(mapped - plain) <= {"copy"}
    assert (mapped - plain).total() <= 1
    before, after = unmapped.chunk.cost_analysis(), chunk.cost_analysis()
    assert after["flops"] == before["flops"] > 0
    assert after["bytes accessed"] <= before["bytes accessed"] + 4


def test_a_trainer_made_for_another_number_of_replicas_is_rejected(unmapped, single):
    pair = make_trainer(config_over(2), environment=noisy(), collectives=device_collectives(2))
    assert (unmapped.trainer.replicas, pair.replicas) == (1, 2)
    message = r"^trainer\.replicas={}: must be {}, .*make_trainer\(config{}\) with Config\({}\)$"
    with_collectives = r", collectives=device_collectives\(2\)"
    for mapping in MAPPINGS:
        with pytest.raises(ValueError, match=message.format(1, 2, with_collectives, "devices=2")):
            across_devices(unmapped.trainer, jax.devices()[:2], mapping=mapping)
    with pytest.raises(ValueError, match=message.format(2, 1, "", "devices=1")):
        across_devices(pair, jax.devices()[:1])
    with pytest.raises(
        ValueError, match=message.format(1, 2, with_collectives, "devices=4, model_devices=2")
    ):
        across_mesh(unmapped.trainer, jax.devices()[:4], 2)
    for mapped in (single[0], population(unmapped.trainer, 2)):
        with pytest.raises(ValueError, match=r"^trainer\.mapped=True: must be False"):
            across_devices(mapped, jax.devices()[:1])
        with pytest.raises(ValueError, match=r"^trainer\.mapped=True: must be False"):
            across_mesh(mapped, jax.devices()[:2], 2)


@pytest.mark.parametrize(
    ("devices", "optimizer", "clip"),
    [
        (2, "adam", {"clip_norm": 0.5}),
        (4, "adam", {"clip_value": 0.05}),
        pytest.param(4, "rmsprop", {"clip_norm": 0.5}, marks=pytest.mark.slow),
        pytest.param(2, "rmsprop", {"clip_value": 0.05}, marks=pytest.mark.slow),
    ],
)
def test_a_batch_divided_over_devices_learns_as_the_full_batch_on_one(
    unmapped, devices, optimizer, clip
):
    """One step from each of 20 states of a run, on rows from a replay, clipped."""
    config = config_over(
        1,
        optimizer=optimizer,
        optimizer_epsilon=1e-2,
        learning_rate=0.01,
        **{"clip_norm": None, **clip},
    )
    hyper, size = hyper_from(config), config.batch_size

    def agent_of(collectives):
        network = make_network(config, noisy().spec)
        return make_agent(network, make_optimizer(config, collectives), target_period=5)

    full_batch, divided = agent_of(identity_collectives), agent_of(device_collectives(devices))
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (DEVICE_AXIS,))
    replicated, sharded = PartitionSpec(), PartitionSpec(DEVICE_AXIS)

    def learn_by(agent):
        return lambda state, batch, weights: agent.learn(
            jax.random.key(1), state, batch, weights, hyper=hyper
        )

    learn = quick_jit(learn_by(full_batch))
    learn_divided = quick_jit(
        jax.shard_map(
            lambda *arguments: learn_by(divided)(*arguments)[0],
            mesh=mesh,
            in_specs=(replicated, sharded, sharded),
            out_specs=replicated,
            check_vma=False,
        )
    )
    learn_each = jax.vmap(lambda *arguments: learn_by(full_batch)(*arguments)[1], (None, 0, 0))
    learn_each = quick_jit(learn_each)
    sample = quick_jit(make_replay(config).sample)
    weights = jnp.linspace(0.1, 1.0, size)
    state = quick_jit(full_batch.init)(jax.random.key(0), jnp.ones((1, 2)), hyper=hyper)
    moved = 0.0
    for key in jax.random.split(jax.random.key(2), 20):
        batch, _ = sample(key, unmapped.end.replay, hyper.gamma)
        expected, info = learn(state, batch, weights)
        learned = learn_divided(state, batch, weights)
        # Adding up a mean of B numbers in another order changes it by at most 2 B u times the
        # mean of their magnitudes (u = 2^-24), which the norms of the examples' gradients bound.
        # The same holds for a product inside the network, a sum of at most 16 numbers. Clipping
        # does not increase the error.
        singles = learn_each(state, *jax.tree.map(lambda leaf: leaf[:, None], (batch, weights)))
        error = 4 * size * 2**-24 * float(np.mean(singles.grad_norm))
        # An update is a m / (sqrt(v) + epsilon). m and sqrt(v) change by no more than the gradient
        # does, and |m| / sqrt(v) is below 4 (RMSProp: at most 1 / sqrt(0.1); Adam: less).
        step = 5 * config.learning_rate / config.optimizer_epsilon * error
        assert_near(learned.opt_state, expected.opt_state, 8 * error)
        for name in ("params", "target_params"):
            pair = getattr(learned, name), getattr(expected, name)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=2**-22, atol=step), *pair)
        assert int(learned.since_target) == int(expected.since_target)
        assert step < 1e-3
        changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected.params, state.params)
        moved = max(moved, *jax.tree.leaves(changes))
        assert float(info.grad_norm) > 0.5  # large enough for both kinds of clipping to apply
        state = expected
    assert moved > 5e-3


def learners_of(size):
    """Return distinct keys and hyper-parameters, [P] each."""
    hyper = jax.tree.map(lambda leaf: jnp.full(size, leaf), hyper_from(config_over(1)))
    rates = jnp.linspace(1e-4, 1e-2, size)
    return jax.random.split(jax.random.key(7), size), hyper._replace(learning_rate=rates)


@pytest.mark.parametrize(("size", "devices"), [(3, 0), (4, 2)])
@pytest.mark.slow
def test_a_population_by_map_equals_separate_runs_bitwise(unmapped, size, devices):
    keys, hyper = learners_of(size)
    many = population(unmapped.trainer, size, devices=jax.devices()[:devices], how="map")
    start = bitwise_jit(many.init)(keys, hyper)
    end, metrics = bitwise_jit(many.chunk(STEPS))(start)
    for index in range(size):
        first = unmapped.init(keys[index], slice_of(hyper, index))
        assert_identical(slice_of(start, index), first)
        last, measured = unmapped.chunk(copied(first))
        assert_identical(slice_of(end, index), last)
        assert_identical(slice_of(metrics, index), measured)


@pytest.mark.parametrize("devices", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_population_by_vmap_steps_as_separate_runs(unmapped, devices):
    """One iteration from each of 20 states: in long runs a flipped argmax separates the two."""
    keys, hyper = learners_of(4)
    many = population(unmapped.trainer, 4, devices=jax.devices()[:devices], how="vmap")
    states = [unmapped.init(keys[index], slice_of(hyper, index)) for index in range(4)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    step = quick_jit(many.step)
    for _ in range(20):
        after, metrics = step(state)
        before, stepped, metrics = jax.device_get((state, after, metrics))
        for index in range(4):
            expected, measured = unmapped.step(slice_of(before, index))
            assert_near(slice_of(stepped, index), expected, 1e-6)
            assert_near(slice_of(metrics, index), measured, 1e-6)
        state = after
