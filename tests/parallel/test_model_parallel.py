"""Layers sharded over the devices of a replica: layout, communication and resumed runs."""

import dataclasses
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.config.config import replace
from jaxdqn.export.policy import load_policy
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.networks import make_network
from jaxdqn.parallel import across_mesh, device_collectives, split_network
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.model_parallel import layer_specs
from jaxdqn.replay import tree_bytes
from jaxdqn.run.device_memory import bytes_per_device
from jaxdqn.run.runner import run
from jaxdqn.storage.params import restore_params
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.parallel.cases import compiled_chunk
from tests.run.test_run import compiled_once  # noqa: F401 (a fixture)
from tests.toys import noisy, quick_jit, tiny
from tests.trees import assert_identical, assert_near, slice_of

REPLICATED, COLUMNS, ROWS = PartitionSpec(), PartitionSpec(None, "model"), PartitionSpec("model")


def wide(**overrides):
    """Return a configuration whose only sharded layer is [32, 1024], by columns."""
    values = {
        "num_envs": 8,
        "batch_size": 16,
        "replay_capacity": 1024,
        "hidden_sizes": (32, 1024),
        "devices": 4,
        "model_devices": 2,
    }
    return tiny(**{**values, **overrides})


def kernels(**shapes):
    """Return the shapes of parameters that are kernels only."""
    return {
        name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        # By columns and by rows alternately; the head is last, although its name sorts first.
        (
            {"Dense_0": (1024, 1024), "Dense_1": (1024, 1024), "Dense_2": (1024, 1024)},
            [COLUMNS, ROWS, COLUMNS],
        ),
        ({"head": (4096, 18), "torso": (4096, 4096)}, [ROWS, COLUMNS]),
        # In numerical order: 2, 9, 10.
        (
            {"Dense_10": (1024, 1024), "Dense_2": (1024, 1024), "Dense_9": (1024, 1024)},
            [COLUMNS, COLUMNS, ROWS],
        ),
        # The other side if the preferred one is too short; it determines the next layer.
        ({"Dense_0": (400, 4096), "Dense_1": (4096, 4096)}, [COLUMNS, ROWS]),
        ({"Dense_0": (4096, 400), "Dense_1": (4096, 4096)}, [ROWS, COLUMNS]),
        # Small, narrow, of odd size, or not a matrix.
        ({"small": (16, 1024)}, [REPLICATED]),
        ({"narrow": (500, 500)}, [REPLICATED]),
        ({"odd": (513, 513)}, [REPLICATED]),
        ({"convolution": (8, 8, 512, 512)}, [REPLICATED]),
        ({"bias": (65536,)}, [REPLICATED]),
    ],
)
def test_layers_are_sharded_by_the_rules(shapes, expected):
    specs = layer_specs(kernels(**shapes), 2)
    assert [spec["kernel"] for spec in specs.values()] == expected


@pytest.fixture(scope="module")
def mesh():
    """A trainer on 2 x 2 devices and its first state."""
    trainer = make_mapped_trainer(wide(), environment=noisy())
    shape = jax.eval_shape(trainer.init, jax.random.key(0))
    init = quick_jit(trainer.init, out_shardings=trainer.sharding(shape))
    return trainer, init(jax.random.key(0))


def custom_adam(hyper):
    return optax.chain(optax.clip(1.0), optax.adam(1e-3, nesterov=True))


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        ({}, 2),
        ({"optimizer": "rmsprop", "clip_norm": 1.0}, 1),
        ({"learning_rate_schedule": "linear", "optimizer": "radam"}, 2),
        (custom_adam, 2),
    ],
)
def test_moments_are_sharded_like_their_parameters(optimizer, moments):
    overrides, parts = ({}, {"optimizer": optimizer}) if callable(optimizer) else (optimizer, {})
    trainer = make_mapped_trainer(wide(**overrides), environment=noisy(), **parts)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    layout = trainer.sharding(state)
    sharded = PartitionSpec("devices", None, "model")
    for part, count in (("params", 1), ("target_params", 1), ("opt_state", moments)):
        leaves = jax.tree.leaves(getattr(state.agent, part))
        specs = jax.tree.leaves(getattr(layout.agent, part))
        found = [
            leaf.shape for leaf, spec in zip(leaves, specs, strict=True) if spec.spec == sharded
        ]
        assert found == [(2, 32, 1024)] * count
    others = jax.tree.leaves((layout._replace(agent=()), layout.agent.since_target))
    assert {sharding.spec for sharding in others} == {PartitionSpec("devices")}


def test_each_device_holds_its_shard_and_a_copy_of_the_rest(mesh):
    trainer, state = mesh
    plain = make_trainer(wide(devices=1, model_devices=1), environment=noisy())
    unsharded = quick_jit(plain.init)(jax.random.key(0))
    kernel = state.agent.params["params"]["torso"]["Dense_1"]["kernel"]
    expected = np.asarray(unsharded.agent.params["params"]["torso"]["Dense_1"]["kernel"])
    rows = [[jax.devices()[0], jax.devices()[1]], [jax.devices()[2], jax.devices()[3]]]
    for shard in kernel.addressable_shards:
        part = next(row.index(shard.device) for row in rows if shard.device in row)
        assert shard.data.shape == (1, 32, 512)
        columns = expected[:, 512 * part : 512 * (part + 1)]
        np.testing.assert_allclose(np.asarray(shard.data)[0], columns, atol=1e-7)
    for leaf in jax.tree.leaves(state._replace(agent=())):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            parts = {shard.device: np.asarray(shard.data) for shard in leaf.addressable_shards}
            for row in rows:
                np.testing.assert_array_equal(parts[row[0]], parts[row[1]])
    small = 2 * 32 + 32 + 1024 + 1024 * 2 + 2
    taken = bytes_per_device(trainer, state)
    assert taken.parameters == taken.target == 4 * (small + 32 * 512)
    assert taken.optimizer == 2 * taken.parameters + 4  # Adam's moments and its count
    assert taken.replay == tree_bytes(state.replay) // 2
    assert taken.state == sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )


BOTH = (1_000_000, 10_000)
"""Capacities of the ring; a copy of it takes memory in proportion."""

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\(.*"
)


@pytest.mark.parametrize(
    ("overrides", "capacities"),
    [
        ({"clip_norm": 0.5}, (1_000_000,)),
        pytest.param({"hidden_sizes": (1024, 1024, 1024)}, BOTH, marks=pytest.mark.slow),
        pytest.param({"clip_norm": 0.5}, BOTH, marks=pytest.mark.slow),
        pytest.param({"average_every": 2, "target_period": 2}, BOTH, marks=pytest.mark.slow),
        pytest.param({"normalize_gradients": True, "accumulate": 2}, BOTH, marks=pytest.mark.slow),
        pytest.param({"target_tau": 0.1, "double": True}, BOTH, marks=pytest.mark.slow),
    ],
)
def test_no_weights_are_gathered_and_no_ring_is_copied(overrides, capacities):
    """Only sums are sent: of activations, of gradients over replicas, of small gradients."""
    temporary = []
    for capacity in capacities:
        config = wide(replay_capacity=capacity, **overrides)
        state, chunk = compiled_chunk(
            make_mapped_trainer(config, environment=noisy()), 2, quick_jit
        )
        memory = chunk.memory_analysis()
        assert memory.alias_size_in_bytes >= tree_bytes(state.replay.storage) / 2
        temporary.append(memory.temp_size_in_bytes)
    if len(capacities) > 1:
        assert temporary[0] <= temporary[1] + 1024
    else:
        assert temporary[0] < tree_bytes(state.replay.storage) / 2 / 2  # half a device's ring
    found = COLLECTIVE.findall(chunk.as_text())
    assert {kind for _, kind in found} <= {"all-reduce", "all-gather"}
    assert any("512" in shapes for shapes, kind in found if kind == "all-reduce")
    for shapes, kind in found:
        if kind == "all-gather":
            for shape in re.findall(r"\[([\d,]*)\]", shapes):
                # The gradient of a bias or of a small matrix, which is packed with others.
                assert np.prod([int(side) for side in shape.split(",")]) <= 2048, shapes


def test_outside_a_mesh_a_split_network_equals_the_network():
    config = wide(devices=1, model_devices=1)
    network = make_network(config, noisy().spec)
    hyper = hyper_from(config)
    obs = jnp.ones((3, 2))
    outcomes = []
    for one in (network, split_network(network, 2)):
        agent = make_agent(one, make_optimizer(config))
        init = quick_jit(lambda key, agent=agent: agent.init(key, obs, hyper=hyper))
        apply = quick_jit(
            lambda params, one=one: one.apply(
                params, jax.random.key(1), (), obs, jnp.ones(3, bool)
            )[0]
        )
        state = init(jax.random.key(0))
        outcomes.append((state, apply(state.params)))
    assert_identical(*outcomes)


@pytest.mark.parametrize(
    ("model_devices", "devices", "hidden_sizes", "message"),
    [
        (2, 4, (256, 256), r"model_devices=2: must be 1 unless the network has a matrix"),
        (3, 6, (32, 1024), r"model_devices=3: must be 1 unless the network has a matrix"),
        (1, 2, (32, 1024), r"model_devices=1: must be at least 2"),
        (2, 3, (32, 1024), r"model_devices=2: .* a divisor of the 3 devices"),
    ],
)
def test_a_mesh_that_cannot_be_used_is_rejected(model_devices, devices, hidden_sizes, message):
    replicas = max(1, devices // model_devices)
    config = wide(
        devices=replicas,
        model_devices=1,
        hidden_sizes=hidden_sizes,
        num_envs=4 * replicas,
        batch_size=8 * replicas,
    )
    trainer = make_trainer(config, environment=noisy(), collectives=device_collectives(replicas))
    with pytest.raises(ValueError, match=message):
        across_mesh(trainer, jax.devices()[:devices], model_devices)
    with pytest.raises(ValueError, match="distinct"):
        across_mesh(trainer, jax.devices()[:1] * 4, 2)


def test_a_replica_over_two_processes_is_rejected():
    class Device(NamedTuple):
        id: int
        process_index: int

    devices = [Device(index, index // 3) for index in range(6)]
    trainer = make_trainer(wide(devices=1, model_devices=1), environment=noisy())
    with pytest.raises(ValueError, match=r"model_devices=2: .* of the devices of each process"):
        across_mesh(trainer, devices, 2)


def test_the_first_replica_stays_sharded(mesh):
    trainer, state = mesh
    params = trainer.params(state)
    assert_identical(params, slice_of(state.agent.params, 0))
    kernel = params["params"]["torso"]["Dense_1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(32, 512)}
    assert kernel.devices() == set(jax.devices()[:2])


class Killed(BaseException):
    """Ends a run at once, like a kill signal."""


def killing(chunk):
    """Return a logger that ends the run at a chunk."""

    def log(kind, record):
        if kind == "metrics" and record["chunk"] == chunk:
            raise Killed

    return Logger(log=log, close=lambda: None)


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 2], ids=["2 x 2", "1 x 2"])
def test_a_run_on_a_mesh_resumes_bitwise(tmp_path, devices):
    config = wide(
        devices=devices,
        total_rows=32 + 240,
        log_every=40,
        eval_every=80,
        eval_episodes=3,
        checkpoint_every=80,
    )
    whole = run(config, out=tmp_path / "whole", environment=noisy())
    with pytest.raises(Killed):
        run(config, out=tmp_path / "parts", environment=noisy(), loggers=[killing(5)])
    parts = run(config, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert_identical(parts.state, whole.state)
    assert_identical(parts.best_params, whole.best_params)
    assert parts.summary["gradient_steps"] == whole.summary["gradient_steps"] == 30
    for which in ("best", "last"):
        target = jax.eval_shape(lambda: whole.best_params)
        saved = [restore_params(tmp_path / name / which, target) for name in ("whole", "parts")]
        assert_identical(*saved)
    trainer = make_mapped_trainer(config, environment=noisy())
    assert_identical(saved[0], trainer.params(whole.state))
    policy = load_policy(tmp_path / "whole", environment=noisy())
    assert policy(np.ones((5, 2))).shape == (5,)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    taken = bytes_per_device(trainer, whole.state)
    assert summary["parameter_bytes_per_device"] == taken.parameters + taken.target
    assert summary["optimizer_bytes_per_device"] == taken.optimizer
    unsplit = make_mapped_trainer(
        dataclasses.replace(config, devices=devices // 2, model_devices=1), environment=noisy()
    )
    shape = jax.eval_shape(unsplit.init, jax.random.key(0))
    before = bytes_per_device(unsplit, shape)
    assert before.parameters - taken.parameters == 4 * 32 * 512
    assert before.optimizer - taken.optimizer == 2 * 4 * 32 * 512


@pytest.mark.slow
def test_the_devices_of_a_mesh_stay_equal_and_learn_as_replicas(mesh):
    """After 300 iterations the devices of both replicas still hold the same parameters."""
    trainer, state = mesh
    layout = trainer.sharding(state)
    chunk = jax.jit(trainer.chunk(100), out_shardings=(layout, None))
    for _ in range(3):
        state, metrics = chunk(state)
    for leaf in jax.tree.leaves(state.agent):
        np.testing.assert_array_equal(np.asarray(leaf)[0], np.asarray(leaf)[1])
        parts = {}
        for shard in leaf.addressable_shards:
            index = str(shard.index[1:])
            np.testing.assert_array_equal(parts.setdefault(index, shard.data), shard.data)
    plain = make_mapped_trainer(replace(wide(), devices=2, model_devices=1), environment=noisy())
    other = quick_jit(plain.init)(jax.random.key(0))
    for _ in range(3):
        other, expected = jax.jit(plain.chunk(100))(other)
    # The trajectories may differ by now; their counts may not.
    assert_near(metrics.rows, expected.rows, 0)
    assert_near(metrics.gradient_steps, expected.gradient_steps, 0)
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=0.2)
