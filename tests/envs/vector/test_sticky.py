"""Sticky actions on the host repeat the action executed last, within an episode and if legal."""

import numpy as np
import pytest

from jaxdqn import envs
from jaxdqn.config.config import Config
from jaxdqn.envs.vector import HostEnvironment, host_environment
from jaxdqn.envs.vector.base import time_step
from jaxdqn.envs.vector.sticky import _STREAM, with_sticky_actions_on_host
from jaxdqn.types import EnvSpec

LIMIT, ACTIONS = 5, 7


class Recording:
    """Environments with episodes of ``LIMIT + i`` steps that record the actions they execute."""

    def __init__(self, num_envs, masked):
        self._num_envs, self._masked = num_envs, masked
        self.executed, self.legal, self.kind = [], [], "training"

    def reset(self, seed):
        self._masks = np.random.default_rng(1)
        self._length = np.zeros(self._num_envs, int)
        return self._time_step(np.zeros(self._num_envs, bool), np.ones(self._num_envs, bool))

    def step(self, actions):
        assert actions.dtype == np.int32
        first = self._length == LIMIT + np.arange(self._num_envs)
        self.executed.append(np.where(first, -1, actions))
        self._length = np.where(first, 0, self._length + 1)
        return self._time_step(self._length == LIMIT + np.arange(self._num_envs), first)

    def _time_step(self, ends, first):
        zeros, legal = np.zeros(self._num_envs), None
        if self._masked:
            legal = self._masks.random((self._num_envs, ACTIONS)) < 0.4
            legal[:, 3] = True
            self.legal.append(legal)
        return time_step(zeros[:, None], zeros, ends, 0 * ends, first, np.dtype(np.float32), legal)

    def render(self):
        return np.full((2, 3, 3), 7, np.uint8)

    def close(self):
        self.kind = "closed"


def recording(masked=False, made=None):
    """Return an environment on the host; ``made`` receives its vector environments."""
    made = [] if made is None else made
    spec = EnvSpec("recording", (1,), np.dtype(np.float32), ACTIONS, None, masked=masked)

    def make(num_envs):
        made.append(Recording(num_envs, masked))
        return made[-1]

    return HostEnvironment(spec, make, make_drawable=lambda: make(1), make_to_evaluate=make)


def executed_by_hand(actions, seed, probability, first, legal):
    """Return the executed actions [T, E], -1 at resets, from a loop over steps and environments."""
    random = np.random.default_rng((seed, _STREAM))
    steps, num_envs = actions.shape
    previous, executed = [0] * num_envs, np.zeros(actions.shape, int)
    for step in range(steps):
        draws = random.random(num_envs)
        for env in range(num_envs):
            action = actions[step, env]
            if draws[env] < probability and legal[step][env][previous[env]]:
                action = previous[env]
            executed[step, env] = -1 if first[step][env] else action
            previous[env] = 0 if first[step][env] else action
    return executed


@pytest.mark.parametrize("masked", [False, True])
def test_executed_actions_are_those_of_a_loop_over_environments(masked):
    made, num_envs, steps = [], 3, 400
    environment = with_sticky_actions_on_host(recording(masked, made), 0.4)
    vector = environment.make(num_envs)
    timestep, rng = vector.reset(11), np.random.default_rng(0)
    actions = rng.integers(0, ACTIONS, (steps, num_envs), np.int32)
    first, legal = [], []
    for step in range(steps):
        legal.append(timestep.legal if masked else np.ones((num_envs, ACTIONS), bool))
        if masked:  # the agent chooses a legal action
            actions[step] = np.argmax(legal[step] * rng.random((num_envs, ACTIONS)), axis=1)
        timestep = vector.step(actions[step])
        first.append(timestep.first)
    executed = np.stack(made[0].executed)
    wanted = executed_by_hand(actions, 11, 0.4, first, legal)
    np.testing.assert_array_equal(executed, wanted)
    played = executed >= 0
    repeated = (executed != actions)[played].mean()
    assert 0.2 < repeated < 0.4 if not masked else 0.05 < repeated < 0.3
    for step, env in np.argwhere(played):
        assert legal[step][env][executed[step, env]]
    vector.close()
    assert made[0].kind == "closed"


def test_equal_seeds_give_equal_repetitions_and_a_reset_forgets_the_previous_action():
    def run(seed, probability=0.5):
        made = []
        vector = with_sticky_actions_on_host(recording(made=made), probability).make(2)
        vector.reset(3)
        vector.step(np.int32([6, 6]))
        vector.reset(seed)
        for _ in range(30):
            vector.step(np.int32([5, 5]))
        return np.stack(made[0].executed)[1:]

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))
    assert set(np.unique(run(3))) == {-1, 0, 5}  # never 6, the action before the reset
    always = run(3, 1 - 1e-9)
    assert set(np.unique(always)) == {-1, 0}, "an episode starts with action 0"


def test_training_evaluation_and_drawing_have_sticky_actions():
    config = Config(sticky_actions=0.3)
    made = []
    host = envs.configured_host_environment(config, recording(made=made))
    assert host.sticky_actions == 0.3
    assert envs.with_host_options(config, host) is host, "it is wrapped once"
    for make in (host.make, host.to_evaluate().make, lambda num_envs: host.make_drawable()):
        vector = make(1)
        vector.reset(0)
        for _ in range(60):
            vector.step(np.int32([4]))
        assert {0, 4} <= set(np.unique(np.stack(made[-1].executed)))
        np.testing.assert_array_equal(vector.render(), 7)
    blind = recording()._replace(make_drawable=None)
    assert with_sticky_actions_on_host(blind, 0.1).make_drawable is None


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("ale:pong", "repeat_action_probability"),
        ("gymnasium:MinAtar/Breakout-v1", "sticky_action_prob"),
    ],
)
def test_simulators_with_an_argument_of_their_own_are_rejected_with_advice(name, argument):
    pytest.importorskip("ale_py" if name.startswith("ale") else "minatar")
    message = rf"^sticky_actions=0\.2: must be 0\.0 with env='{name}'.*--env-arg {argument}=0\.2$"
    with pytest.raises(ValueError, match=message):
        envs.configured_host_environment(Config(env=name, sticky_actions=0.2))
    assert host_environment(name, {}).sticky_actions == 0
