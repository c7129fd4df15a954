"""Runs and processes killed at any moment, and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxdqn.cli import replay as export
from jaxdqn.config.config import replace
from jaxdqn.export.policy import load_policy
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.replay.export import read_rows
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.storage.resume import read_state
from tests.parallel.test_mapping_laws import assert_identical
from tests.run.test_run import (
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.storage.runs import (
    CONFIG,
    Killed,
    assert_same_run,
    killing,
    records,
    shrunk,
    without_clocks,
)
from tests.toys import DEVICE_PRESETS, noisy

ROOT = Path(__file__).resolve().parents[2]


CASES = {name: (config, {}) for name, config in DEVICE_PRESETS.items()} | {
    "cartpole, two devices": (DEVICE_PRESETS["cartpole"], {"devices": 2}),
    "cartpole, boltzmann and stacks": (
        DEVICE_PRESETS["cartpole"],
        {"exploration": "boltzmann", "frame_stack": 3, "rollout_length": 2, "gradient_steps": 2},
    ),
    "cartpole, prioritised": (DEVICE_PRESETS["cartpole"], {"replay": "prioritized"}),
    "cartpole, prioritised, two devices": (
        DEVICE_PRESETS["cartpole"],
        {"replay": "prioritized", "devices": 2, "priority_exponent": 0.5},
    ),
    "cartpole, deterministic": (DEVICE_PRESETS["cartpole"], {"devices": 2, "deterministic": True}),
    "cartpole, pmap": (DEVICE_PRESETS["cartpole"], {"devices": 2, "mapping": "pmap"}),
    "cartpole, model mesh": (
        DEVICE_PRESETS["cartpole"],
        {"devices": 4, "model_devices": 2, "hidden_sizes": (512, 512)},
    ),
    "cartpole, int8": (DEVICE_PRESETS["cartpole"], {"devices": 2, "compression": "int8"}),
    "cartpole, top-k": (DEVICE_PRESETS["cartpole"], {"devices": 2, "compression": "top_k"}),
    "cartpole, powersgd": (DEVICE_PRESETS["cartpole"], {"devices": 2, "compression": "powersgd"}),
    "cartpole, muon": (DEVICE_PRESETS["cartpole"], {"optimizer": "muon"}),
    "cartpole, outer optimiser": (
        DEVICE_PRESETS["cartpole"],
        {"devices": 2, "average_every": 2, "target_period": 6, "outer_optimizer": "nesterov"},
    ),
    "cartpole, averaging": (
        DEVICE_PRESETS["cartpole"],
        {"devices": 2, "average_every": 2, "target_period": 6},
    ),
    "cartpole, population by map": (
        DEVICE_PRESETS["cartpole"],
        {"num_seeds": 2, "population": "map"},
    ),
    "cartpole, population by vmap over devices": (
        DEVICE_PRESETS["cartpole"],
        {"sweep": ("gamma=0.9,0.99",), "num_seeds": 2, "devices": 2, "population": "vmap"},
    ),
}


QUICK = ("cartpole",)


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_killed_and_resumed_equals_never_stopped(tmp_path, case):
    preset, overrides = CASES[case]
    config = shrunk(preset, **overrides)
    assert config.num_chunks == 6
    uninterrupted = run(config, out=tmp_path / "uninterrupted")
    with pytest.raises(Killed):
        run(config, out=tmp_path / "parts", loggers=[killing(3)])
    # Chunk 3 was run and recorded. Its record is truncated: the checkpoint is of chunk 2.
    assert len(read_lines(tmp_path / "parts" / "metrics.jsonl")) <= 3
    assert steps_of(tmp_path / "parts" / CHECKPOINTS) == [2]
    with pytest.raises(Killed):
        run(config, out=tmp_path / "parts", resume=True, loggers=[killing(6)])
    parts = run(config, out=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "parts", uninterrupted, parts)
    assert (uninterrupted.summary["bytes_sent_per_gradient_step"] is None) == (config.replicas == 1)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_restarts_and_reports_it(tmp_path):
    seen = []
    logger = Logger(log=lambda kind, record: seen.append((kind, record)), close=lambda: None)
    with pytest.raises(Killed):
        run(
            replace(CONFIG, checkpoint_every=10**6),
            out=tmp_path / "run",
            environment=noisy(),
            loggers=[killing(2)],
        )
    uninterrupted = run(CONFIG, out=tmp_path / "uninterrupted", environment=noisy())
    again = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    messages = [record["message"] for kind, record in seen if "message" in record]
    assert any("starts from the beginning" in message for message in messages)
    # The records of the first attempt are backed up, not lost.
    assert (tmp_path / "run" / "metrics.jsonl.before-1").stat().st_size > 0
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "run", uninterrupted, again)


@pytest.mark.slow
def test_the_policy_of_a_killed_run_can_be_loaded(tmp_path):
    with pytest.raises(Killed):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), loggers=[killing(4)])
    assert load_policy(tmp_path / "run", environment=noisy())(np.ones(2)) in (0, 1)
    assert load_policy(tmp_path / "run", "last", environment=noisy())(np.ones(2)) in (0, 1)


def command(*arguments, environment):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("waits", [[0.2, 0.5, 0.9]])
def test_a_process_killed_at_any_moment_resumes_from_the_command_line(tmp_path, waits):
    flags = [
        "catch", "--num-envs", "4", "--batch-size", "8", "--replay-capacity", "4000",
        "--hidden-sizes", "8", "--total-rows", "40000", "--log-every", "400", "--eval-every",
        "8000", "--eval-episodes", "8", "--checkpoint-every", "400", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    reference = [*flags[:-1], str(tmp_path / "uninterrupted")]
    process = command(*reference, environment=environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    kills = 0
    for wait in waits:
        process = command(*flags, "--resume", environment=environment)
        directory = tmp_path / "run" / CHECKPOINTS
        before = steps_of(directory)
        while process.poll() is None and steps_of(directory) == before:
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    process = command("--out", str(tmp_path / "run"), "--resume", environment=environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert kills
    assert "resumes from" in output
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(tmp_path / "run", name) == records(tmp_path / "uninterrupted", name)
    summaries = [
        without_clocks(json.loads((tmp_path / which / "summary.json").read_text()))
        for which in ("run", "uninterrupted")
    ]
    assert summaries[0] == summaries[1]
    # The last checkpoints hold the same parameters, optimiser state and replay.
    config = read_config(tmp_path / "run")
    ends = [read_state(tmp_path / which, config)[0] for which in ("run", "uninterrupted")]
    assert ends[0].step == ends[1].step
    assert_identical(ends[0].state, ends[1].state)
    file = tmp_path / "rows.npz"
    assert export.main([str(tmp_path / "run"), "--to", str(file)]) == 0
    assert export.main([str(tmp_path / "run"), "--to", str(file)]) == 2  # it exists
    assert read_rows(tmp_path / "rows.npz").rows.first.shape == (1000, 4)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_and_cartpole_is_solved(tmp_path):
    """A kill loses at most the chunk in progress and the one whose checkpoint is being written."""
    out, rng = tmp_path / "run", random.Random(0)
    flags = [
        "cartpole", "--checkpoint-every", "640", "--log-every", "640", "--eval-every", "6400",
        "--out", str(out), "--resume",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    kills, lost = 0, []
    while True:
        process = command(*flags, environment=environment)
        before = steps_of(out / CHECKPOINTS)
        if kills < 50:
            # Half of the kills while the run starts, half soon after its first new checkpoint.
            if kills % 2:
                while process.poll() is None and steps_of(out / CHECKPOINTS) == before:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.1))
            else:
                time.sleep(rng.uniform(0, 6))
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate(timeout=300)
        if kills and process.returncode == -signal.SIGKILL:
            written = read_lines(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []
            reached = written[-1]["chunk"] if written else 0
            lost.append(reached - max(steps_of(out / CHECKPOINTS), default=0))
            continue
        assert process.returncode == 0, errors
        break
    assert kills == 50
    assert max(lost) <= 2, lost
    summary = json.loads((out / "summary.json").read_text())
    assert summary["solved"]
    chunks = [record["chunk"] for record in read_lines(out / "metrics.jsonl")]
    assert chunks == list(range(1, len(chunks) + 1))
