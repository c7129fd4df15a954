"""Resuming a run: N + N chunks are bitwise identical to 2 N chunks; errors name the reason."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

import jaxdqn.storage.checkpoint_manager
import jaxdqn.storage.resume
from jaxdqn.cli import run as run_command
from jaxdqn.config.config import replace
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, checkpoint_path, steps_of
from jaxdqn.storage.jsonl import read_lines
from tests.parallel.test_mapping_laws import assert_identical
from tests.run.test_run import (
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.storage.runs import CONFIG, assert_same_run, interrupted, records
from tests.toys import noisy


def test_a_signal_or_the_deadline_saves_at_the_next_chunk_and_the_run_resumes(tmp_path):
    config = replace(CONFIG, checkpoint_every=None)  # by time, none is due this early
    uninterrupted = run(config, out=tmp_path / "uninterrupted", environment=noisy())
    ended = interrupted(tmp_path / "parts", config, number=signal.SIGINT)
    assert (ended.summary["interrupted"], ended.summary["ended_by"]) == (True, "SIGINT")
    late = replace(config, max_seconds=1e-3)
    ended = run(late, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert (ended.summary["interrupted"], ended.summary["ended_by"]) == (True, "deadline")
    assert ended.summary["rows"] == 32 + 2 * config.iterations_per_chunk * 4
    parts = run(config, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "parts", uninterrupted, parts)
    assert uninterrupted.summary["ended_by"] == "budget"


def test_by_default_checkpoints_are_taken_by_time(tmp_path, monkeypatch):
    config = replace(CONFIG, checkpoint_every=None)
    run(config, out=tmp_path / "calm", environment=noisy())
    assert steps_of(tmp_path / "calm" / CHECKPOINTS) == [config.num_chunks]
    monkeypatch.setattr(jaxdqn.storage.checkpoint_manager, "SECONDS_BETWEEN", 0.0)
    run(config, out=tmp_path / "hasty", environment=noisy())
    assert len(steps_of(tmp_path / "hasty" / CHECKPOINTS)) >= 2


def test_checkpoint_every_zero_makes_no_checkpoints_and_cannot_be_resumed(tmp_path):
    config = replace(CONFIG, checkpoint_every=0)
    run(config, out=tmp_path / "run", environment=noisy())
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        run(config, out=tmp_path / "run", environment=noisy(), resume=True)


def test_resuming_a_run_that_has_ended_changes_nothing(tmp_path):
    first = run(CONFIG, out=tmp_path / "run", environment=noisy())
    before = {name: records(tmp_path / "run", name) for name in ("metrics.jsonl",)}
    again = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_identical(first.state, again.state)
    assert before == {name: records(tmp_path / "run", name) for name in ("metrics.jsonl",)}
    # Without checkpoints the run cannot be resumed, and is not restarted either.
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS)
    with pytest.raises(ValueError, match="must have a checkpoint to resume from"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert before == {name: records(tmp_path / "run", name) for name in ("metrics.jsonl",)}
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_longer_budget_continues_where_the_shorter_one_ended(tmp_path):
    longer = replace(CONFIG, total_rows=32 + 6 * 100, log_every=100)
    shorter = replace(longer, total_rows=32 + 3 * 100)
    uninterrupted = run(longer, out=tmp_path / "uninterrupted", environment=noisy())
    run(shorter, out=tmp_path / "parts", environment=noisy())
    parts = run(longer, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert_identical(uninterrupted.state, parts.state)
    assert records(tmp_path / "uninterrupted", "metrics.jsonl") == records(
        tmp_path / "parts", "metrics.jsonl"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 1), ("learning_rate", 0.5), ("hidden_sizes", (8,)), ("num_envs", 8), ("gamma", 0.5)],
)
def test_another_configuration_is_rejected_with_the_name_of_the_field(tmp_path, field, value):
    interrupted(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=rf"{field}=.*must be .*as in the run"):
        run(
            replace(CONFIG, **{field: value}),
            out=tmp_path / "run",
            environment=noisy(),
            resume=True,
        )
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(tmp_path):
    uninterrupted = run(CONFIG, out=tmp_path / "uninterrupted", environment=noisy())
    interrupted(tmp_path / "run", chunk=4)
    newest, before, *_ = steps_of(tmp_path / "run" / CHECKPOINTS)
    (checkpoint_path(tmp_path / "run", newest) / "meta.json").write_text("{}")
    seen = []
    logger = Logger(log=lambda kind, record: seen.append((kind, record)), close=lambda: None)
    parts = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    events = [record for kind, record in seen if kind == "event"]
    assert [each["event"] for each in events][:2] == ["damaged", "resumed"]
    assert str(checkpoint_path(tmp_path / "run", newest)) in events[0]["message"]
    assert events[1]["chunk"] == before
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "run", uninterrupted, parts)


def test_only_damaged_checkpoints_are_an_error_and_nothing_is_overwritten(tmp_path):
    interrupted(tmp_path / "run", chunk=4)
    for step in steps_of(tmp_path / "run" / CHECKPOINTS):
        (checkpoint_path(tmp_path / "run", step) / "MANIFEST").unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="must hold an intact checkpoint"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_without_its_replay_a_run_resumes_and_reports_that_it_differs(tmp_path):
    config = replace(CONFIG, replay_in_checkpoint=False)
    interrupted(tmp_path / "run", config)
    seen = []
    logger = Logger(log=lambda kind, record: seen.append((kind, record)), close=lambda: None)
    result = run(config, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    (resumed,) = [r for kind, r in seen if kind == "event" and r["event"] == "resumed"]
    assert "no replay" in resumed["message"]
    # The rows that refill the replay are counted, since the environments were stepped.
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    rows = [record["rows"] for record in metrics]
    steps = set(np.diff(rows))
    assert len(steps) == 2
    assert max(steps) - min(steps) == 32
    assert result.summary["gradient_steps"] == config.total_gradient_steps
    small = size_of(checkpoint_path(tmp_path / "run", 6))
    run(CONFIG, out=tmp_path / "uninterrupted", environment=noisy())
    large = size_of(checkpoint_path(tmp_path / "uninterrupted", 6))
    assert small < large


def size_of(directory):
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def test_records_shorter_than_at_the_checkpoint_are_an_error(tmp_path):
    interrupted(tmp_path / "run")
    os.truncate(tmp_path / "run" / "metrics.jsonl", 10)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: must have at least"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)


def test_resuming_where_no_run_has_started_needs_a_preset(tmp_path, capsys):
    assert run_command.main(["--resume", "--out", str(tmp_path / "nothing")]) == 2
    assert "to start one, name a preset" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    assert run_command.main(["--from", str(tmp_path / "none.json")]) == 2
    (tmp_path / "list.json").write_text("[]")
    assert run_command.main(["--from", str(tmp_path / "list.json")]) == 2
    (tmp_path / "mine.json").write_text('{"env": "Catch-bsuite", "seed": 7}')
    name, flags = run_command.read_flags(["--from", str(tmp_path / "mine.json"), "--gamma", "0.5"])
    assert (name, flags.env, flags.seed, flags.gamma) == (None, "Catch-bsuite", 7, 0.5)


@pytest.mark.slow
def test_another_machine_is_reported_on_resume(tmp_path, monkeypatch):
    interrupted(tmp_path / "run")
    before = jaxdqn.storage.resume.machine()
    monkeypatch.setattr(jaxdqn.storage.resume, "machine", lambda: {**before, "jax": "9.9"})
    seen = []
    logger = Logger(log=lambda kind, record: seen.append(record), close=lambda: None)
    run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    (message,) = [record["message"] for record in seen if record.get("event") == "resumed"]
    assert f"not bitwise identical, since jax was {jax.__version__}, is 9.9" in message


def test_two_runs_cannot_have_one_directory(tmp_path):
    held = []

    def log(kind, record):
        if kind == "metrics" and not held:
            for resume in (True, False):
                with pytest.raises(ValueError, match=r"in use|new or an empty") as error:
                    run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=resume)
                held.append(str(error.value))

    run(
        CONFIG,
        out=tmp_path / "run",
        environment=noisy(),
        loggers=[Logger(log=log, close=lambda: None)],
    )
    assert f"process {os.getpid()}" in held[0]
    # The lock is released when the run ends; the lock file stays.
    assert (tmp_path / "run" / ".lock").exists()
    run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)


def test_resume_needs_a_run_directory():
    with pytest.raises(ValueError, match="resume=True: must come with out"):
        run(CONFIG, environment=noisy(), resume=True)
