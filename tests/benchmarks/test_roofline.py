"""Roofline: counts by hand, and the least times that follow from them."""

import math

import jax
import numpy as np
import pytest

from benchmarks.roofline import hand
from benchmarks.roofline.__main__ import PRESETS, preset_table, rates_table
from benchmarks.roofline.device import PRECISIONS, TINY, measure_device, pass_bytes, product_flops
from benchmarks.roofline.measure import measure_preset, precision_of, prepare_preset, xla_cost
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import preset
from jaxdqn.networks import make_network
from jaxdqn.types import EnvSpec

CARTPOLE_SPEC = EnvSpec("CartPole-v1", (4,), np.dtype("float32"), 2, 500)
BREAKOUT_SPEC = EnvSpec("Breakout-MinAtar", (10, 10, 4), np.dtype("bool"), 6, 1000)
MLP = [hand.Layer(4, 64), hand.Layer(64, 2)]


def test_the_layers_of_an_mlp_are_those_worked_by_hand():
    layers = hand.layers_of(Config(hidden_sizes=(120, 84)), (4,), 2)
    assert layers == [hand.Layer(4, 120), hand.Layer(120, 84), hand.Layer(84, 2)]
    # 4*120+120 + 120*84+84 + 84*2+2
    assert hand.parameter_bytes(layers) == 4 * (600 + 10_164 + 170)


def test_the_minatar_network_convolves_at_64_positions():
    layers = hand.layers_of(Config(env="Breakout-MinAtar"), (10, 10, 4), 6)
    assert layers == [hand.Layer(36, 16, 64), hand.Layer(1024, 128), hand.Layer(128, 6)]
    # One observation: 64 positions of 36 x 16, then 1024 x 128 and 128 x 6, two operations each.
    assert hand.forward_flops(layers, 1) == 2 * (64 * 576 + 131_072 + 768) == 337_408


@pytest.mark.parametrize("name", [*PRESETS, "cartpole-mlp-120-84"])
def test_the_counted_parameters_are_those_of_the_network(name):
    config = PRESETS[name].config() if name in PRESETS else Config(hidden_sizes=(120, 84))
    spec = BREAKOUT_SPEC if "breakout" in name else CARTPOLE_SPEC
    network = make_network(config, spec)
    obs = jax.ShapeDtypeStruct((1, *spec.obs_shape), spec.obs_dtype)
    params = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), obs)
    counted = hand.parameter_bytes(hand.layers_of(config, spec.obs_shape, spec.num_actions))
    assert counted == sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_a_forward_pass_has_two_operations_for_each_weight():
    assert hand.forward_flops(MLP, 1) == 2 * (4 * 64 + 64 * 2) == 768
    assert hand.forward_flops(MLP, 128) == 128 * 768


def test_a_backward_pass_has_two_products_a_layer_and_one_for_the_first():
    # 2 * 768 for both products of both layers, less the gradient of the observations, 512.
    assert hand.backward_flops(MLP, 1) == 2 * 768 - 512 == 1024


def test_acting_reads_parameters_and_observations_and_writes_actions():
    config = Config(num_envs=8, hidden_sizes=(64,), replay_capacity=8 * 32)
    work = hand.act_work(config, MLP, obs_bytes=16)
    assert work == hand.Work(8 * 768, 4 * (256 + 64 + 128 + 2) + 8 * (16 + 4))


def test_a_draw_reads_two_observations_and_the_rewards_of_n_steps():
    config = Config(batch_size=32, n_step=3)
    # Read: 2 * 50 packed bytes, the action, 3 rewards and flags; written: 2 * 400, and 3 numbers.
    read, written = 100 + 4 + 15, 800 + 12
    assert hand.draw_work(config, 50, 400) == hand.Work(0, 32 * (read + written))


def test_a_draw_of_pqn_reads_each_row_once():
    config = replace(preset("pqn"), num_envs=4, rollout_length=8, minibatches=2, epochs=3)
    # Reward and greatest Q, a byte of flags; target, weight, and an index for each pass.
    assert hand.draw_work(config, 16, 16) == hand.Work(0, 32 * (8 + 1 + 8 + 12))


@pytest.mark.parametrize(("double", "forward"), [(False, 2), (True, 3)])
def test_learning_evaluates_online_and_target_network(double, forward):
    config = Config(batch_size=8, hidden_sizes=(64,), double=double)
    work = hand.learn_work(config, MLP, obs_bytes=16)
    assert work.flops == 8 * (forward * 768 + 1024)
    assert work.bytes == 7 * 4 * 450 + 8 * (2 * 16 + 12)


def test_learning_of_pqn_evaluates_one_network_once():
    config = replace(preset("pqn"), num_envs=4, rollout_length=8, minibatches=4)
    work = hand.learn_work(config, MLP, obs_bytes=16)
    assert work == hand.Work(8 * (768 + 1024), 6 * 4 * 450 + 8 * (16 + 12))


def test_an_iteration_acts_k_times_and_learns_m_times():
    base = Config(rollout_length=4, gradient_steps=3, replay_capacity=32 * 4 * 64)
    assert hand.iteration_counts(base) == {"act": 4, "draw": 3, "learn": 3}
    pqn = replace(preset("pqn"), rollout_length=4, minibatches=2, epochs=3)
    assert hand.iteration_counts(pqn) == {"act": 4, "draw": 1, "learn": 6}


@pytest.mark.parametrize(("work", "seconds"), [((100.0, 10.0), 10.0), ((10.0, 100.0), 20.0)])
def test_the_floor_is_the_longer_of_arithmetic_and_memory(work, seconds):
    assert hand.floor_seconds(hand.Work(*work), 10.0, 5.0) == seconds


@pytest.mark.parametrize(
    "field", [{"dueling": True}, {"noisy": True}, {"loss": "categorical"}, {"recurrent": "lstm"}]
)
def test_networks_that_are_not_counted_are_rejected_by_name(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"^{name}="):
        hand.layers_of(Config(**field), (4,), 2)


def test_rates_of_the_device_are_positive():
    rates = measure_device(TINY)
    assert set(rates.flops) == set(PRECISIONS)
    assert min(*rates.flops.values(), rates.bytes) > 0
    assert product_flops(TINY) == 2 * 64**3
    assert pass_bytes(TINY) == 8 * 4096
    assert "GB/s" in rates_table(rates._asdict())


def test_a_count_that_xla_does_not_know_is_a_dash():
    part = {"count": 1, "flops_by_hand": 2e6, "bytes_by_hand": 3e6, "flops_by_xla": None,
            "bytes_by_xla": None, "floor_us": 5.0, "us": 20.0, "share": 0.25}  # fmt: skip
    line = preset_table({"parts": {"iteration": part}}).splitlines()[1]
    assert line.split() == ["iteration", "1", "2.00", "-", "3.00", "-", "5.00", "20.0", "25.00%"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "default"),
        ({"matmul_precision": "float32"}, "float32"),
        ({"precision": "bfloat16"}, "bfloat16 matrices"),
    ],
)
def test_the_rate_of_the_products_is_that_of_their_precision(fields, name):
    assert precision_of(Config(**fields)) == name
    assert name in PRECISIONS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast", "pqn"])
def test_xla_counts_little_more_than_the_products(name):
    shrunk = {"rollout_length": 4, "minibatches": 2} if name == "pqn" else {"warmup_rows": 1_024}
    config = preset(name, env="Breakout-MinAtar", convolution="patches", **shrunk)
    prepared = prepare_preset(config, 2)
    for part, most in (("act", 1.1), ("learn", 1.3)):
        counted, _ = xla_cost(prepared.programs[part].compiled)
        assert 1 <= counted / prepared.by_hand[part].flops <= most, part
    found = measure_preset(prepared, measure_device(TINY), rounds=1, seconds=0.0)
    assert set(found["parts"]) == {"act", "draw", "learn", "iteration"}
    for part, measured in found["parts"].items():
        assert measured["us"] > 0
        assert (measured["flops_by_xla"] is None) == (part == "iteration" and name == "pqn")
