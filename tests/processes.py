"""Fixtures and helpers for commands in separate processes and runs over several of them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.storage.resume import read_state
from tests.trees import assert_identical

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "cartpole", "--total-rows", "10000", "--log-every", "1000", "--eval-every", "4000",
    "--checkpoint-every", "2000", "--eval-episodes", "10",
]  # fmt: skip
ENDLESS = [*SHORT, "--total-rows", "1000000000", "--deterministic"]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@pytest.fixture
def start(tmp_path_factory):
    """Start commands; kill those that still run at the end of the test."""
    started = []
    # One compilation cache for all tests, since most run the same programs.
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "xla"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }

    def command(*argv, program=("-m", "jaxdqn", "run"), **environment):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, argv)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **defaults, **environment},
        )
        started.append(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def pair(start, port):
    """Start two processes of two devices each."""

    def both(*argv, **environment):
        peers = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2]
        flags = [*argv, "--virtual-devices", 2, "--devices", 4, *peers]
        return [start(*flags, "--process-id", index, **environment) for index in range(2)]

    return both


def wait_for(processes, *, within=150):
    """Wait for processes; return exit codes, last lines of standard error, and seconds."""
    started = time.monotonic()
    errors = [process.communicate(timeout=within)[1] for process in processes]
    seconds = time.monotonic() - started
    codes = [process.returncode for process in processes]
    return (
        codes,
        [text.strip().splitlines()[-1] if text.strip() else "" for text in errors],
        seconds,
    )


def worker_of(process):
    """Return the child of a supervising process."""
    (child,) = psutil.Process(process.pid).children()
    return child


def await_checkpoint(out, processes, step=1, within=150):
    """Wait until a run has written the checkpoint of ``step`` while its processes run."""
    deadline = time.monotonic() + within
    while max(steps_of(out / CHECKPOINTS), default=0) < step:
        assert all(process.poll() is None for process in processes), wait_for(processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def records_of(out, name):
    """Return the lines of a JSONL file without its times."""
    lines = read_lines(out / name)
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def assert_same_run(one, other):
    """Assert that two runs wrote the same records and the same last state."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records_of(one, name) == records_of(other, name)
    states = [read_state(out, read_config(out))[0] for out in (one, other)]
    assert states[0].step == states[1].step
    assert_identical(states[0].state, states[1].state)
