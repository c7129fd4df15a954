"""``jaxdqn watch``: follow the records of a run while another process writes them."""

import json
from contextlib import ExitStack

import pytest

from jaxdqn.cli import watch
from jaxdqn.config.config import to_dict
from jaxdqn.monitoring.follow import RecordReader, is_running
from jaxdqn.storage.directory import lock
from jaxdqn.storage.jsonl import write_json
from tests.monitoring.test_loggers import EVALUATION, metrics
from tests.toys import tiny


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "config.json", to_dict(tiny()))
    return tmp_path


def append(run, name, *records):
    with (run / name).open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_records_are_read_once_in_the_order_of_their_time(run):
    reader = RecordReader(run)
    assert list(reader.records()) == []
    append(run, "metrics.jsonl", {"chunk": 1, "seconds": 1.0}, {"chunk": 2, "seconds": 3.0})
    append(run, "evaluations.jsonl", {"return_mean": 5.0, "seconds": 2.0})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"chunk": 3, "sec')
    kinds = [kind for kind, _ in reader.records()]
    assert kinds == ["metrics", "evaluation", "metrics"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('onds": 4.0}\n')
    assert list(reader.records()) == [("metrics", {"chunk": 3, "seconds": 4.0})]


def test_a_file_that_was_truncated_is_read_again(run):
    reader = RecordReader(run)
    append(run, "metrics.jsonl", {"chunk": 1, "seconds": 1.0}, {"chunk": 2, "seconds": 2.0})
    assert len(list(reader.records())) == 2
    (run / "metrics.jsonl").write_text('{"chunk": 1, "seconds": 1.0}\n')
    assert list(reader.records()) == [("metrics", {"chunk": 1, "seconds": 1.0})]


def test_a_run_is_running_while_a_process_holds_its_lock(run):
    assert not is_running(run)
    with ExitStack() as stack:
        lock(run, stack)
        assert is_running(run)
    assert not is_running(run)
    with ExitStack() as stack:  # is_running does not keep the lock
        lock(run, stack)


def test_a_run_is_followed_until_its_process_ends(run, monkeypatch, capsys):
    stack = ExitStack()
    lock(run, stack)
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 1:
            append(run, "metrics.jsonl", metrics(1_000))
        elif len(naps) == 2:
            append(run, "evaluations.jsonl", EVALUATION)
        else:
            stack.close()

    monkeypatch.setattr("jaxdqn.cli.watch.time.sleep", sleep)
    assert watch.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("CartPole-v1, seed 0, into ")
    assert "env steps 990" in lines[1]
    assert lines[2].startswith("evaluation at 2,000 rows")
    assert lines[3] == "stopped before its end: --resume continues it"
    assert len(naps) == 3


def test_once_prints_the_newest_records(run, capsys):
    assert watch.main([str(run), "--once"]) == 0
    assert capsys.readouterr().out.startswith("no chunk is finished yet")
    append(run, "metrics.jsonl", metrics(1_000), metrics(2_000))
    with ExitStack() as stack:
        lock(run, stack)
        assert watch.main([str(run), "--once"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "env steps 1,990" in first
    assert last == "running"


def test_a_directory_without_a_run_is_reported_in_one_line(tmp_path, capsys):
    assert watch.main([str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be a run directory" in line
