"""Masks of Gymnasium environments: read from infos, checked, and never disobeyed in a run."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxdqn.envs.vector.checked import check_time_step
from jaxdqn.envs.vector.gymnasium import from_gymnasium
from jaxdqn.training.vector_evaluation import make_vector_evaluator
from jaxdqn.training.vector_programs import jit_vector_programs
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import make_vector_trainer
from tests.toys import QUICK, tiny

ACTIONS, LENGTH = 4, 5
KEY = jax.random.key(0)


class Strict(gymnasium.Env):
    """Raise for an illegal action. The mask is drawn at random; the last state has none."""

    observation_space = spaces.Box(0, 9, (2,), np.float32)
    action_space = spaces.Discrete(ACTIONS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observed(draw=True)

    def step(self, action):
        assert self.mask[action], f"action {action} of {self.mask}"
        self.steps += 1
        ended = self.steps == LENGTH
        obs, info = self._observed(draw=not ended)
        return obs, 1.0, ended, False, info

    def _observed(self, *, draw):
        self.mask = np.zeros(ACTIONS, np.int8)
        if draw:
            self.mask[:] = self.np_random.random(ACTIONS) < 0.4
            self.mask[self.np_random.integers(ACTIONS)] = 1
        return self.np_random.uniform(0, 9, 2).astype(np.float32), {"action_mask": self.mask}


class Unmasked(gymnasium.Wrapper):
    """Drop the info of the last step, as some environments do."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, {} if terminated else info


class Stuck(Strict):
    """Return an empty mask, or no mask, in the middle of an episode."""

    kind = "empty"

    def _observed(self, *, draw):
        obs, info = super()._observed(draw=draw and (self.steps != 3 or self.kind != "empty"))
        if self.steps == 3 and self.kind == "missing":
            info = {}
        if self.steps == 3 and self.kind == "short":
            info = {"action_mask": np.ones(3, np.int8)}
        return obs, info


def play(vector, steps=40, seed=0):
    """Take legal actions; return the time steps."""
    rng, timestep = np.random.default_rng(seed), vector.reset(3)
    seen = [timestep]
    for _ in range(steps):
        actions = [rng.choice(np.flatnonzero(row)) if row.any() else 0 for row in timestep.legal]
        timestep = vector.step(np.array(actions, np.int32))
        seen.append(timestep)
    vector.close()
    return seen


@pytest.mark.parametrize("make", [Strict, lambda: Unmasked(Strict())], ids=["strict", "no info"])
def test_masks_are_those_of_the_infos_also_of_resets(make):
    host = from_gymnasium(make, "strict")
    assert host.spec.masked
    seen = play(host.make(3))
    plain, vector = Strict(), host.make(1)
    plain.reset(seed=3)
    timestep = vector.reset(3)
    np.testing.assert_array_equal(timestep.legal[0], plain.mask)
    for timestep in seen:
        check_time_step(timestep, host.spec, 3)
        np.testing.assert_array_equal(timestep.legal.any(axis=1), ~timestep.terminated)
    assert sum(int(timestep.first.sum()) for timestep in seen) > 10


@pytest.mark.slow
def test_masks_in_processes_are_those_in_this_process():
    for make in (Strict, _make_unmasked):
        here, there = (
            play(from_gymnasium(make, "strict", processes=processes).make(2))
            for processes in (False, True)
        )
        for one, other in zip(here, there, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def _make_unmasked():
    return Unmasked(Strict())


def test_an_environment_without_masks_or_whose_reset_fails_has_none():
    assert not from_gymnasium(lambda: gymnasium.make("CartPole-v1"), "cartpole").spec.masked

    class Failing(Strict):
        def reset(self, *, seed=None, options=None):
            raise OSError("no display")

    assert not from_gymnasium(Failing, "failing").spec.masked


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "environment 0 returned a mask without a legal action"),
        ("missing", "environment 0 returned no action_mask in its info"),
        ("short", r"environment 0 returned an action_mask of int8\[3\], and must .*\[4\]"),
    ],
)
def test_an_invalid_mask_names_its_environment(kind, message):
    host = from_gymnasium(type("Case", (Stuck,), {"kind": kind}), "stuck")
    vector = host.make(2)
    timestep = check_time_step(vector.reset(0), host.spec, 2)
    for _ in range(2):
        timestep = vector.step(np.argmax(timestep.legal, axis=1).astype(np.int32))
    actions = np.argmax(timestep.legal, axis=1).astype(np.int32)
    with pytest.raises(ValueError, match=message):
        check_time_step(vector.step(actions), host.spec, 2)


def test_masks_of_another_shape_or_presence_are_rejected():
    host = from_gymnasium(Strict, "strict")
    timestep = host.make(2).reset(0)
    for legal, message in (
        ((), r"legal is empty, and must be bool\[2, 4\]"),
        (timestep.legal[:, :3], r"legal is bool\[2, 3\], and must be bool\[2, 4\]"),
        (timestep.legal.astype(np.int8), r"legal is int8"),
    ):
        with pytest.raises(ValueError, match=message):
            check_time_step(timestep._replace(legal=legal), host.spec, 2)
    with pytest.raises(ValueError, match="legal is a mask, and must be empty"):
        check_time_step(timestep, host.spec._replace(masked=False), 2)


class Product(Strict):
    """Two actions at once, masked over their combinations in row-major order, or separately."""

    action_space = spaces.MultiDiscrete([2, 2])
    separate = False

    def step(self, action):
        return super().step(int(action[0]) * 2 + int(action[1]))

    def _observed(self, *, draw):
        obs, info = super()._observed(draw=draw)
        if self.separate:
            info = {"action_mask": (np.ones(2, np.int8), np.ones(2, np.int8))}
        return obs, info


def test_several_actions_have_one_mask_of_their_combinations():
    seen = play(from_gymnasium(Product, "product").make(2))
    assert seen[0].legal.shape == (2, 4)
    separate = from_gymnasium(type("Separate", (Product,), {"separate": True}), "product")
    with pytest.raises(ValueError, match=r"of a tuple, and must return .* of all combinations"):
        separate.make(1).reset(0)


VARIANTS = {
    "dqn": {"n_step": 2, "double": True},
    "no overlap": {"overlap": False},
    "boltzmann": {"exploration": "boltzmann", "bootstrap": "munchausen"},
    "repeat": {"epsilon_repeat": 0.5, "loss": "quantile"},
    "noisy": {"noisy": True, "loss": "categorical"},
    "r2d2": {"recurrent": "gru", "recurrent_size": 4, "burn_in": 1, "sequence_length": 3},
    "pqn": {
        "algorithm": "pqn", "rollout_length": 8, "minibatches": 4,
        "replay_capacity": type(tiny()).replay_capacity, "warmup_rows": type(tiny()).warmup_rows,
        "batch_size": type(tiny()).batch_size,
    },
}  # fmt: skip
FAST = ("dqn",)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, fields in VARIANTS.items()
    ],
)
def test_no_run_takes_an_illegal_action(fields):
    trainer = make_vector_trainer(tiny(**fields), from_gymnasium(Strict, "strict"))
    runner = VectorRunner(trainer, jit_vector_programs(trainer, QUICK))
    state = runner.init(KEY, trainer.init(KEY).hyper)
    state, (metrics, _) = runner.chunk(state, 15)
    runner.close()
    assert int(metrics.illegal) == 0
    assert int(metrics.episodes) > 5


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_no_evaluation_takes_an_illegal_action(epsilon):
    host = from_gymnasium(Strict, "strict")
    trainer = make_vector_trainer(tiny(), host)
    evaluate = make_vector_evaluator(trainer.agent, host, 6, epsilon=epsilon)
    info = evaluate(trainer.init(KEY).agent.params, KEY)
    np.testing.assert_array_equal(info.returns, LENGTH)
