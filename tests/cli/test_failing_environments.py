"""Environments on the host that fail: exit code, one line, a checkpoint and no process left."""

import os
import signal
import time

import psutil
import pytest

from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.jsonl import read_lines
from tests.processes import start  # noqa: F401

MODULE = """
import os, pathlib
import gymnasium, numpy as np
from gymnasium import spaces

class Walk(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        pathlib.Path(os.environ["PIDS"], str(os.getpid())).touch()
        if os.environ.get("NO_ROAD"):
            raise LookupError("no road\\nto start on")
        self.at = np.zeros(2, np.float32)
        return self.at, {}

    def step(self, action):
        self.at = self.at + np.float32(action)
        return self.at, 1.0, False, bool(self.at[0] > 9), {}

gymnasium.register("Walk-v0", Walk, max_episode_steps=20)
"""
FLAGS = [
    "--env", "gymnasium:walks:Walk-v0", "--num-envs", 2, "--rollout-length", 4,
    "--warmup-rows", 64, "--replay-capacity", 1024, "--batch-size", 8, "--hidden-sizes", 8,
    "--total-rows", 100_000_000, "--log-every", 800, "--checkpoint-every", 800,
    "--eval-every", 0, "--eval-episodes", 2,
]  # fmt: skip


@pytest.fixture
def begin(tmp_path, start):  # noqa: F811
    """Start a run; return its process, its directory, and a function that reads its workers."""
    (tmp_path / "walks.py").write_text(MODULE)
    pids = tmp_path / "pids"
    pids.mkdir()

    def run(*flags, **environment):
        environment |= {"PYTHONPATH": str(tmp_path), "PIDS": str(pids)}
        process = start(*FLAGS, *flags, "--out", tmp_path / "run", **environment)

        def workers():
            return {int(file.name) for file in pids.iterdir()} - {process.pid}

        return process, tmp_path / "run", workers

    return run


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_a_checkpoint_and_no_process_left(begin):
    process, out, workers = begin("--env-processes")
    until = time.monotonic() + 300
    while not (out / CHECKPOINTS).is_dir() or not steps_of(out / CHECKPOINTS):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)
    assert len(workers()) == 2
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(min(workers()), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: env='gymnasium:walks:Walk-v0': step failed: the process of ")
    assert line.endswith("ended with exit code -9")
    assert not any(map(psutil.pid_exists, workers()))
    assert psutil.wait_procs(children, timeout=10)[1] == []
    (event,) = [one for one in read_lines(out / "events.jsonl")
                if one["event"] == "environment failed"]  # fmt: skip
    assert "exit code -9" in event["traceback"]
    assert max(steps_of(out / CHECKPOINTS)) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--env-processes",)])
def test_an_environment_that_raises_in_reset_ends_the_run_in_one_line(begin, flags):
    process, _, workers = begin(*flags, NO_ROAD="1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines() == [
        "error: env='gymnasium:walks:Walk-v0': reset failed: LookupError: no road to start on"
    ]
    assert len(workers()) == 2 * len(flags)
    assert not any(map(psutil.pid_exists, workers()))
