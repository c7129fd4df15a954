"""Bytes sent, predicted and read from compiled programs; learning with each saving."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.communication.averaging import make_average
from jaxdqn.communication.collectives import DEVICE_AXIS
from jaxdqn.communication.cost import Collective, bytes_per_gradient_step, collectives_in
from jaxdqn.networks import make_network
from jaxdqn.parallel import device_collectives
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Batch
from tests.toys import noisy, quick_jit, tiny

ROOT = Path(__file__).resolve().parents[2]
WIDE = (200, 100)
NUM_PARAMS = 2 * 200 + 200 + 200 * 100 + 100 + 100 * 2 + 2
SHAPES = [(2, 200), (200,), (200, 100), (100,), (100, 2), (2,)]
"""One tensor of these is too large to be packed with the others."""


def config_of(**overrides):
    return tiny(hidden_sizes=WIDE, batch_size=8, num_envs=8, **overrides)


def agent_of(config):
    collectives = device_collectives(config.devices, deterministic=config.deterministic)
    network = make_network(config, noisy().spec)
    return make_agent(network, make_optimizer(config, collectives)), collectives


def state_of(config):
    agent, _ = agent_of(config)
    obs = jnp.zeros((1, 2))
    return jax.eval_shape(
        lambda key: agent.init(key, obs, hyper=hyper_from(config)), jax.random.key(0)
    )


def compiled(config, function, *arguments):
    """Return the compiled program of a function mapped over devices with replicated arrays."""
    mesh = Mesh(np.asarray(jax.devices()[: config.devices]), (DEVICE_AXIS,))
    replicated = PartitionSpec()
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
    )
    return quick_jit(mapped).lower(*arguments).compile().as_text()


@functools.cache
def learning(**overrides):
    """Return the collectives of one gradient step and the predicted bytes."""
    config = config_of(**overrides)
    agent, _ = agent_of(config)
    size = config.batch_per_device
    obs, number = jnp.zeros((size, 2)), jnp.zeros(size)
    batch = Batch(obs, jnp.zeros(size, jnp.int32), number, number, obs)

    def learn(state, batch):
        hyper = hyper_from(config)
        return agent.learn(jax.random.key(0), state, batch, jnp.ones(size), hyper=hyper)

    found = collectives_in(compiled(config, learn, state_of(config), batch))
    return found, bytes_per_gradient_step(config, NUM_PARAMS, SHAPES)


def sent(found):
    return sum(each.sent for each in found)


KINDS = ("none", "bfloat16", "int8", "top_k")


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_step_sends_the_predicted_bytes(kind, devices):
    found, predicted = learning(devices=devices, compression=kind)
    assert sent(found) == predicted.total == predicted.gradients > 0
    assert {each.group for each in found} == {devices}


def test_collectives_use_the_compressed_dtype():
    for devices in (2, 4, 8):
        types = {
            kind: {(each.op, each.dtype) for each in learning(devices=devices, compression=kind)[0]}
            for kind in KINDS
        }
        assert types["none"] == {("all-reduce", "f32")}
        assert types["bfloat16"] == {("all-to-all", "u16"), ("all-gather", "u16")}
        assert types["int8"] == {("all-to-all", "s8"), ("all-gather", "s8")}
        # Indices, and values as 32-bit words.
        assert types["top_k"] == {("all-gather", "s32")}
        assert len(learning(devices=devices, compression="int8")[0]) == 2


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_compression_sends_a_fraction_of_the_bytes(devices):
    fractions = {
        kind: sent(learning(devices=devices, compression=kind)[0])
        / sent(learning(devices=devices, compression="none")[0])
        for kind in KINDS
    }
    assert fractions["int8"] <= 0.30
    assert fractions["bfloat16"] == pytest.approx(0.5, abs=0.001)
    # Index and value of a hundredth of the elements to every device: the fraction times D.
    assert fractions["top_k"] == pytest.approx(0.01 * devices, rel=0.01)


@pytest.mark.parametrize("num_params", [450, 5_000, 135_782, 10**8])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_int8_saves_as_much_for_networks_of_any_size(num_params, devices):
    plain, compressed = (
        bytes_per_gradient_step(tiny(devices=devices, num_envs=8, compression=kind), num_params)
        for kind in ("none", "int8")
    )
    assert compressed.total <= 0.30 * plain.total


@pytest.mark.parametrize("devices", [2, 4])
def test_the_deterministic_mean_is_an_all_gather(devices):
    found, predicted = learning(devices=devices, deterministic=True)
    assert {each.op for each in found} == {"all-gather"}
    assert sent(found) == predicted.total == 4 * NUM_PARAMS * (devices - 1)


def averaging(**overrides):
    """Return the bytes of one averaging: of single numbers, and of arrays."""
    config = config_of(average_every=8, target_period=8, **overrides)
    _, collectives = agent_of(config)
    average = make_average(
        config,
        collectives,
        target_period=config.target_period if config.has_periodic_target else None,
    )
    found = collectives_in(compiled(config, average, state_of(config)))
    # A distance and counts: steps since the target was replaced, of Adam, of a schedule.
    numbers = [each for each in found if each.elements <= 4 * config.devices]
    rest = [each for each in found if each not in numbers]
    return config, sent(numbers), sent(rest)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_averaging_every_eight_steps_sends_an_eighth_of_the_parameters(devices):
    config, numbers, rest = averaging(devices=devices)
    predicted = bytes_per_gradient_step(config, NUM_PARAMS)
    assert rest / 8 == predicted.total == predicted.parameters
    # There are as many parameters as gradients.
    assert rest / 8 <= sent(learning(devices=devices, compression="none")[0]) / 8
    assert 0 < numbers <= 12 * (devices - 1)


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"average_moments": True}, 3),
        ({"average_moments": True, "optimizer": "rmsprop"}, 2),
        ({"average_moments": True, "optimizer": "rmsprop", "rmsprop_centered": True}, 3),
        ({"average_moments": True, "learning_rate_schedule": "linear"}, 3),
        ({"target_tau": 0.01}, 2),
    ],
)
def test_moments_and_polyak_targets_are_counted_separately(options, copies):
    config, _, rest = averaging(devices=2, **options)
    predicted = bytes_per_gradient_step(config, NUM_PARAMS)
    assert rest / 8 == predicted.total == 4 * NUM_PARAMS * copies / 8
    assert predicted.gradients == 0
    moments = copies - 1 if config.average_moments else 0
    assert predicted.moments == 4 * NUM_PARAMS * moments / 8


def test_between_averagings_nothing_is_sent():
    found, _ = learning(devices=2, average_every=8, target_period=8)
    assert found == []


def test_one_replica_sends_nothing():
    assert bytes_per_gradient_step(tiny(), 1_000).total == 0
    # Learners of a population do not communicate.
    assert bytes_per_gradient_step(tiny(devices=2, num_seeds=4), 1_000).total == 0


LINES = {
    "%all-reduce.1 = f32[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, "
    "use_global_device_ids=true, to_apply=%add": [("all-reduce", "f32", 32, 2, 128)],
    "ROOT %ar = (f32[10]{0}, f32[]) all-reduce(%x, %y), replica_groups=[2,4]<=[8], to_apply=%add": [
        ("all-reduce", "f32", 11, 4, 66)
    ],
    "%ars = bf16[16]{0:T(256)(128)(2,1)S(1)} all-reduce-start(bf16[16]{0} %x), "
    "replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add": [("all-reduce", "bf16", 16, 4, 48)],
    "%ags = (s8[5]{0}, s8[40]{0}) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, "
    "dimensions={0}": [("all-gather", "s8", 40, 8, 35)],
    "%ags = ((s8[5]{0}, u16[2]{0}), (s8[10]{0}, u16[4]{0})) all-gather-start(%x, %y), "
    "replica_groups={{0,1}}": [("all-gather", "s8", 10, 2, 5), ("all-gather", "u16", 4, 2, 4)],
    "%a2a = (u16[1,3]{1,0}, /*index=1*/u16[1,3]{1,0}) all-to-all(%x, %y), replica_groups={{0,1}}": [
        ("all-to-all", "u16", 6, 2, 6)
    ],
    "%a2a = s8[8,3]{1,0} all-to-all(%x), replica_groups={}, dimensions={0}": [
        ("all-to-all", "s8", 24, 8, 21)
    ],
    "%s = ((s8[4,3]{1,0}), s8[4,3]{1,0}, u32[]) all-to-all-start(%x), replica_groups={{0,1,2,3}}": [
        ("all-to-all", "s8", 12, 4, 9)
    ],
    "%rs = f32[4]{0} reduce-scatter(%x), replica_groups=[1,4]<=[4], dimensions={0}": [
        ("reduce-scatter", "f32", 4, 4, 48)
    ],
    "%cp = f32[6]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,0}}": [
        ("collective-permute", "f32", 6, 3, 24)
    ],
    "%cps = (pred[6]{0}, pred[6]{0}, u32[], u32[]) collective-permute-start(%x), "
    "source_target_pairs={{0,1},{1,0}}": [("collective-permute", "pred", 6, 2, 6)],
    # The end, the users and the name of a collective are not collectives.
    "%d = s8[40]{0} all-gather-done(%ags)": [],
    "%g = u16[1,3]{1,0} get-tuple-element(%all-to-all), index=0": [],
    '%m = f32[2]{0} add(%all-reduce, %x), metadata={op_name="all-reduce(x)"}': [],
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.partition(", ")[0])
def test_each_form_of_a_collective_is_parsed(line):
    text = f"HloModule jit_f, num_partitions=8\n\nENTRY %main {{\n  {line}\n}}\n"
    assert collectives_in(text) == [Collective(*expected) for expected in LINES[line]]


def test_a_collective_without_a_number_of_devices_is_rejected():
    line = "HloModule f\n  %a = f32[4]{0} all-reduce(%x), replica_groups={}, to_apply=%add\n"
    with pytest.raises(ValueError, match="hlo='all-reduce': must name the devices"):
        collectives_in(line)


SAVINGS = {
    "bfloat16": ["--compression", "bfloat16"],
    "int8": ["--compression", "int8"],
    "top_k": ["--compression", "top_k", "--top-k-fraction", "0.05"],
    "average": ["--average-every", "8", "--target-period", "24"],
    "average_moments": ["--average-every", "8", "--target-period", "24", "--average-moments"],
}


@pytest.mark.slow
@pytest.mark.parametrize("saving", SAVINGS)
def test_each_saving_still_solves_cartpole(saving, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"}
    solved = []
    for seed in range(5):
        out = tmp_path / str(seed)
        subprocess.run(
            [
                *(sys.executable, "-m", "jaxdqn", "run", "cartpole", "--seed", str(seed)),
                *("--virtual-devices", "2", "--devices", "2", *SAVINGS[saving]),
                *("--out", str(out)),
            ],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        solved.append(json.loads((out / "summary.json").read_text())["solved"])
    assert all(solved), solved


def test_muon_averages_one_moment_of_a_matrix_and_two_of_any_other_tensor():
    config = config_of(
        average_every=8, target_period=8, average_moments=True, optimizer="muon", devices=2
    )
    shapes = [(3, 3, 2, 4), (4,), (5, 6)]
    predicted = bytes_per_gradient_step(config, 106, shapes)
    assert predicted.moments == predicted.parameters / 106 * (2 * 72 + 2 * 4 + 30)
    with pytest.raises(ValueError, match=r"^shapes=\(\): must have num_params=106 elements"):
        bytes_per_gradient_step(config, 106)
