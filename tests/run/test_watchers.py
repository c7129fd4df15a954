"""Loggers and plots that fail: the run completes, and reports each failure once."""

import errno
import json
from types import SimpleNamespace

import pytest

from jaxdqn.monitoring.loggers import Logger, LoggerGroup
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.jsonl import read_lines
from tests.run.test_run import collector, small
from tests.toys import noisy, quick_runs, shared_programs


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with shared_programs(tmp_path_factory.mktemp("xla")), quick_runs():
        yield


def failing(error, on="metrics", name="mine"):
    """Return the list of calls of a logger, and the logger, which raises on a kind of record."""
    calls = []

    def log(kind, record):
        calls.append(kind)
        if kind == on:
            raise error

    return calls, Logger(log=log, close=lambda: calls.append("close"), name=name)


ERRORS = {
    "a reader that has closed its pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "a mistake": KeyError("loss"),
    "characters": UnicodeEncodeError("ascii", "±", 0, 1, "ordinal not in range(128)"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_logger_that_fails_is_dropped_and_reported_once(error, capsys):
    calls, logger = failing(error)
    seen, other = collector()
    group = LoggerGroup([logger, other])
    group.log("start", {})
    group.log("metrics", {"chunk": 1})
    group.log("metrics", {"chunk": 2})
    group.close()
    assert calls == ["start", "metrics", "close"]
    assert [kind for kind, _ in seen.records] == ["start", "metrics", "event", "metrics"]
    event = seen.records[2][1]
    assert event["event"] == "logger dropped"
    assert event["reason"].startswith(f"mine failed: {type(error).__name__}: ")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {event['reason']}; it is dropped")
    assert seen.closed == 1


def test_a_logger_that_fails_on_the_event_of_another_is_dropped_too(capsys):
    first, second = failing(ValueError("a"), name="a"), failing(ValueError("b"), "event", "b")
    seen, other = collector()
    group = LoggerGroup([first[1], second[1], other])
    group.log("metrics", {})
    group.log("metrics", {})
    assert [kind for kind, _ in seen.records] == ["metrics", "event", "event", "metrics"]
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_records_of_the_run_directory_are_not_dropped():
    group = LoggerGroup([])
    group.files = failing(OSError(errno.ENOSPC, "No space left on device"))[1]
    with pytest.raises(OSError, match="No space left"):
        group.log("metrics", {})


def test_a_logger_that_is_an_object_is_named_by_its_class(capsys):
    class Mine(SimpleNamespace):
        def log(self, kind, record):
            raise ValueError("no")

        def close(self):
            raise ValueError("never")

    group = LoggerGroup([Mine()])
    group.log("start", {})
    group.close()
    assert capsys.readouterr().err.startswith("warning: Mine failed: ValueError: no;")


def test_a_run_whose_loggers_and_picture_fail_ends_with_checkpoint_and_summary(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("jaxdqn.run.runner.plot_runs", lambda *_: 1 / 0)
    out = tmp_path / "run"
    loggers = [failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))[1]]
    loggers += [failing(ValueError("late"), "summary", "late")[1]]
    result = run(small(), out=out, environment=noisy(), loggers=loggers)
    assert result.summary["interrupted"] is False
    assert json.loads((out / "summary.json").read_text())["rows"] == result.summary["rows"]
    assert steps_of(out / CHECKPOINTS)[0] == 4
    assert len(read_lines(out / "metrics.jsonl")) == 4
    events = [
        (event["event"], event["reason"])
        for event in read_lines(out / "events.jsonl")
        if "reason" in event
    ]
    assert events == [
        ("logger dropped", "mine failed: BrokenPipeError: [Errno 32] Broken pipe"),
        ("logger dropped", "late failed: ValueError: late"),
        ("no curve", "curve.png could not be drawn: division by zero"),
    ]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_runs_that_start_together_take_different_directories(tmp_path):
    first = run(small(), out=tmp_path / "run", unique=True, environment=noisy())
    second = run(small(), out=tmp_path / "run", unique=True, environment=noisy())
    assert [first.directory, second.directory] == [tmp_path / "run", tmp_path / "run-2"]
    assert all((made.directory / "summary.json").exists() for made in (first, second))
    with pytest.raises(ValueError, match="unique=True: must come with out, and without resume"):
        run(small(), out=tmp_path / "run", unique=True, resume=True)
