"""Runs on a full disk or without permission: they fail with a one-line error; resuming works."""

import os
import subprocess

import numpy as np
import pytest

import jaxdqn.run.runner
import jaxdqn.storage.checkpoint
from jaxdqn.config.config import replace
from jaxdqn.errors import RunFailed
from jaxdqn.export.policy import load_policy
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from tests.run.test_run import (
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.storage.runs import CONFIG, assert_same_run, interrupted
from tests.toys import noisy


def test_a_disk_full_while_writing_records_ends_the_run_with_one_line(tmp_path, monkeypatch):
    make = jaxdqn.run.runner.make_jsonl_logger

    def full(directory):
        (directory / "metrics.jsonl").symlink_to("/dev/full")
        return make(directory)

    monkeypatch.setattr(jaxdqn.run.runner, "make_jsonl_logger", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        run(CONFIG, out=tmp_path / "run", environment=noisy())


def test_a_broken_pipe_in_a_custom_logger_is_not_reported_as_a_full_disk(tmp_path):
    def log(kind, record):
        if kind == "metrics":
            raise BrokenPipeError

    result = run(
        CONFIG,
        out=tmp_path / "run",
        environment=noisy(),
        loggers=[Logger(log=log, close=lambda: None)],
    )
    assert result.summary["ended_by"] == "budget"


def test_a_last_checkpoint_that_fails_still_leaves_the_parameters(tmp_path, monkeypatch):
    def full(path, snapshot):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(jaxdqn.storage.checkpoint, "write", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        run(replace(CONFIG, checkpoint_every=None), out=tmp_path / "run", environment=noisy())
    assert (tmp_path / "run" / "summary.json").exists()
    assert load_policy(tmp_path / "run", environment=noisy())(np.ones(2)) in (0, 1)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_it_can_be_resumed_later(tmp_path, monkeypatch):
    uninterrupted = run(CONFIG, out=tmp_path / "uninterrupted", environment=noisy())
    write = jaxdqn.storage.checkpoint.write

    def fails_from_chunk_3(path, snapshot):
        if snapshot.step >= 3:
            raise OSError(28, "No space left on device", str(path))
        write(path, snapshot)

    monkeypatch.setattr(jaxdqn.storage.checkpoint, "write", fails_from_chunk_3)
    with pytest.raises(
        RunFailed, match=r"No space left on device.*is complete: continue with resume"
    ):
        run(CONFIG, out=tmp_path / "run", environment=noisy())
    assert steps_of(tmp_path / "run" / CHECKPOINTS)[0] == 2
    monkeypatch.setattr(jaxdqn.storage.checkpoint, "write", write)
    parts = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "run", uninterrupted, parts)


# Orbax leaves failed threads and coroutines behind on a full disk.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.slow
def test_a_disk_that_is_really_full_leaves_a_run_that_can_be_resumed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("cannot mount a disk here")
    try:
        config = replace(CONFIG, replay_capacity=4096, keep=20, total_rows=4000, log_every=100)
        with pytest.raises((RunFailed, ValueError)) as error:
            run(config, out=disk / "run", environment=noisy())
        assert "No space left" in str(error.value) or "is whole" in str(error.value)
        assert steps_of(disk / "run" / CHECKPOINTS)
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        parts = run(config, out=disk / "run", environment=noisy(), resume=True)
        uninterrupted = run(config, out=tmp_path / "uninterrupted", environment=noisy())
        assert_same_run(tmp_path / "uninterrupted", disk / "run", uninterrupted, parts)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_without_permission_is_rejected_with_one_line(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    interrupted(tmp_path / "run")
    (tmp_path / "run").chmod(0o500)
    with pytest.raises((ValueError, RunFailed), match=r"must be writable|Permission denied"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
