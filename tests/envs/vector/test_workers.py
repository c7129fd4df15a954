"""Environments in separate processes: failures, signals and ends."""

import os
import signal
import time
import traceback

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.gymnasium import from_gymnasium
from jaxdqn.envs.vector.restarts import EnvironmentFailed

NO = np.zeros(2, np.int32)


class Process(gymnasium.Env):
    """Observe the number of the process; action 1 raises, and action 2 ends the process."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def _observe(self):
        return np.array([os.getpid()], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        if action == 1:
            raise ZeroDivisionError("the simulator\nbroke")
        if action == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._observe(), 0.0, False, False, {}


@pytest.fixture
def started():
    host = from_gymnasium(Process, "process", processes=True)
    envs = CheckedEnvironments(host, 2)
    pids = envs.reset(0).obs[:, 0].astype(int).tolist()
    assert len({*pids, os.getpid()}) == 3
    yield envs, pids
    envs.close()
    assert not any(map(alive, pids))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_exception_in_a_process_arrives_with_its_traceback(started):
    envs, _ = started
    message = "^env='process': step failed: ZeroDivisionError: the simulator broke$"
    with pytest.raises(EnvironmentFailed, match=message) as raised:
        envs.step(np.int32([0, 1]))
    trace = "".join(traceback.format_exception(raised.value.__cause__))
    assert 'raise ZeroDivisionError("the simulator' in trace


class NoReset(Process):
    """Raise in every reset."""

    def reset(self, *, seed=None, options=None):
        raise LookupError("no road")


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exception_in_reset_arrives_with_its_traceback(processes):
    envs = CheckedEnvironments(from_gymnasium(NoReset, "roads", processes=processes), 2)
    message = "^env='roads': reset failed: LookupError: no road$"
    with pytest.raises(EnvironmentFailed, match=message) as raised:
        envs.reset(0)
    trace = "".join(traceback.format_exception(raised.value.__cause__))
    assert 'raise LookupError("no road")' in trace
    envs.close()


@pytest.mark.slow
def test_a_process_that_ends_is_named_and_the_others_end_too(started):
    envs, _ = started
    message = "^env='process': step failed: the process of environment 1 ended with exit code -9$"
    with pytest.raises(EnvironmentFailed, match=message):
        envs.step(np.int32([0, 2]))


@pytest.mark.slow
def test_signals_of_a_terminal_or_scheduler_leave_the_processes_to_the_run(started):
    envs, pids = started
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)
    assert envs.step(NO).obs[:, 0].astype(int).tolist() == pids


@pytest.mark.slow
def test_processes_that_do_not_close_are_killed(monkeypatch):
    monkeypatch.setattr("jaxdqn.envs.vector.workers._CLOSE_SECONDS", 0.5)

    class Hanging(Process):
        def close(self):
            time.sleep(3600 * (os.getpid() != owner))

    owner = os.getpid()
    envs = CheckedEnvironments(from_gymnasium(Hanging, "hanging", processes=True), 2)
    pids = envs.reset(0).obs[:, 0].astype(int).tolist()
    started = time.monotonic()
    envs.close()
    assert time.monotonic() - started < 30
    assert not any(map(alive, pids))
