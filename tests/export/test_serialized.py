"""Policies as StableHLO, run in a process without jaxdqn."""

import json
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.cli import export as export_command
from jaxdqn.export.measure import agreement, mean_return
from jaxdqn.export.policy import load_policy
from jaxdqn.export.quantize import quantize, restore
from jaxdqn.export.serialized import Policy, flatten, write_policy
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import NormalizedParams, ObservationStatistics
from tests.run.test_run import compiled_once, finished  # noqa: F401 (fixtures)
from tests.toys import cycle, masked, noisy, tiny

RUN_ALONE = """
import sys
from importlib import import_module

BLOCKED = ("jaxdqn", "flax", "gymnax", "optax", "orbax", "chex", "tyro")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import numpy as np

for directory in sys.argv[1:]:
    sys.path.insert(0, directory)
    policy = import_module("load_policy").load(directory)
    data = dict(np.load(f"{directory}/inputs.npz"))
    steps = len(data["obs"])
    masks = data.get("legal", [None] * steps)
    actions = [policy(data["obs"][t], data["first"][t], masks[t]) for t in range(steps)]
    np.save(f"{directory}/actions.npy", np.stack(actions))
assert not {name.partition(".")[0] for name in sys.modules} & set(BLOCKED)
"""


def policy_of(environment, seed=0, **overrides):
    """Return the policy of fresh parameters, larger than at their start so that actions differ."""
    config = tiny(**overrides)
    trainer = make_trainer(config, environment=environment)
    spec = trainer.environment.spec
    stack = () if config.frame_stack == 1 else (config.frame_stack,)
    obs = np.zeros((1, *spec.obs_shape, *stack), spec.obs_dtype)
    init = jax.jit(partial(trainer.agent.init, hyper=hyper_from(config)))
    params = jax.tree.map(lambda leaf: 2 * leaf, init(jax.random.key(seed), obs).params)
    return Policy(trainer.agent, spec, config.frame_stack, params), trainer


def inputs(spec, steps, batch):
    """Return random observations [T, B, O], with ends of episodes and masks."""
    rng, shape = np.random.default_rng(0), (steps, batch, *spec.obs_shape)
    data = {
        "obs": (
            rng.normal(size=shape) > 0.5
            if spec.obs_dtype == np.bool_
            else rng.normal(size=shape).astype(spec.obs_dtype)
        ),
        "first": rng.random((steps, batch)) < 0.1,
    }
    if spec.masked:
        data["legal"] = rng.random((steps, batch, spec.num_actions)) < 0.5
        data["legal"][..., 0] |= ~data["legal"].any(axis=-1)
    return data


def by_hand(policy, data):
    """Return the actions of the agent, with stacks gathered from the observations."""
    steps, size = data["first"].shape
    carry = policy.agent.initial_carry(size)
    act = jax.jit(policy.agent.act)
    actions = []
    begin = np.zeros(size, int)
    for now in range(steps):
        begin = np.where(data["first"][now], now, begin)
        obs = data["obs"][now]
        if policy.frame_stack > 1:
            frames = [
                np.where(
                    (now - back >= begin)[:, None],
                    data["obs"][max(now - back, 0)],
                    np.zeros_like(obs),
                )
                for back in reversed(range(policy.frame_stack))
            ]
            obs = np.stack(frames, axis=-1)
        masks = [data["legal"][now]] if "legal" in data else []
        first = data["first"][now]
        taken, carry, _ = act(jax.random.key(1), policy.params, carry, obs, first, None, *masks)
        actions.append(np.asarray(taken))
    return np.stack(actions)


def actions_of_run(directory, obs):
    """Return the actions of the run's last parameters, observations [T, B, 2] -> [T, B]."""
    actions = load_policy(directory, "last", environment=noisy())(obs.reshape(-1, 2))
    return np.asarray(actions).reshape(obs.shape[:2])


def test_exported_policies_take_the_actions_of_the_run_without_jaxdqn(finished, tmp_path):  # noqa: F811
    plain = tmp_path / "plain"
    record = jaxdqn.export_policy(finished.out, plain, "last", environment=noisy())
    assert record == {
        "format": "stablehlo",
        "quantize": "float32",
        "weight_bytes": 4 * (2 * 16 + 16 + 16 * 2 + 2),
    }
    obs = np.random.default_rng(1).uniform(-9, 9, (2, 5000, 2)).astype(np.float32)
    np.savez(plain / "inputs.npz", obs=obs, first=np.zeros(obs.shape[:2], bool))
    directories = {plain: actions_of_run(finished.out, obs)}
    for name, environment, options in (
        ("carry", masked(), {"recurrent": "lstm", "recurrent_size": 8, "warmup_rows": 100}),
        ("stack", noisy(), {"frame_stack": 3}),
    ):
        policy, _ = policy_of(environment, **options)
        write_policy(tmp_path / name, policy, flatten(policy), {})
        data = inputs(policy.spec, 20, 500)
        np.savez(tmp_path / name / "inputs.npz", **data)
        directories[tmp_path / name] = by_hand(policy, data)
    command = [sys.executable, "-c", RUN_ALONE, *map(str, directories)]
    subprocess.run(command, check=True, cwd=tmp_path)
    for directory, expected in directories.items():
        assert len(np.unique(expected)) > 1
        actions = np.load(directory / "actions.npy")
        assert actions.size == 10_000
        np.testing.assert_array_equal(actions, expected)


def test_int8_kernels_are_within_half_a_step_of_their_channel():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[..., 2] = 0
    params = {"kernel": kernel, "bias": kernel[0, 0, 0]}
    stored = quantize(params, "int8")
    restored = restore(stored.layout, list(stored.weights))
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    assert (np.abs(restored["kernel"] - kernel) <= step * 0.5001).all()
    np.testing.assert_array_equal(restored["bias"], params["bias"])
    assert stored.bytes == kernel.size + 4 * 5 + 4 * 5


def test_bfloat16_keeps_eight_bits_and_statistics_stay_exact():
    values = np.float32([[1 + 2**-7, 1 + 2**-9]])
    statistics = ObservationStatistics(values, values, np.float32(3))
    params = NormalizedParams({"kernel": values}, statistics)
    stored = quantize(params, "bfloat16")
    restored = restore(stored.layout, list(stored.weights))
    np.testing.assert_array_equal(restored.network["kernel"], [[1 + 2**-7, 1]])
    np.testing.assert_array_equal(restored.observations.mean, values)
    assert stored.bytes == 2 * 2 + 2 * 8 + 4


@pytest.mark.slow
def test_int8_takes_three_tenths_of_the_bytes(finished, tmp_path, capsys):  # noqa: F811
    policy, _ = policy_of(noisy(), hidden_sizes=(256, 256))
    full, small = (quantize(policy.params, dtype).bytes for dtype in ("float32", "int8"))
    assert small <= 0.30 * full
    with pytest.raises(ValueError, match="quantize='int4': must be one of float32, bfloat16, int8"):
        jaxdqn.export_policy(finished.out, tmp_path / "x", quantize="int4")
    record = jaxdqn.export_policy(
        finished.out, tmp_path / "int8", quantize="int8", episodes=4, environment=noisy()
    )
    written = json.loads((tmp_path / "int8" / "policy.json").read_text())
    assert record.items() <= written.items()
    assert 0.9 < record["action_agreement"] <= 1
    assert "of actions agree" in export_command.report(record)
    assert export_command.main([str(finished.out), "--to", str(tmp_path / "int8")]) == 2
    assert "must be a new or an empty directory" in capsys.readouterr().err


def test_agreement_and_return_are_those_of_constant_policies():
    policy, trainer = policy_of(cycle([1, 1, 1], limit=6))

    def constant(action):
        def leaf_of(leaf):
            return (0 * leaf).at[action].set(1) if leaf.shape == (2,) else 0 * leaf

        return policy._replace(params=jax.tree.map(leaf_of, policy.params))

    zero, one = constant(0), constant(1)
    assert agreement(zero, zero, trainer.environment, 100) == 1
    assert agreement(zero, one, trainer.environment, 100) == 0
    assert mean_return(zero, trainer.environment, 2) == (6, 0)
    assert mean_return(one, trainer.environment, 2) == (0, 0)
