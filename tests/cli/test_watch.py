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


def line(chunk, **values):
    return json.dumps({"chunk": chunk, "seconds": float(chunk), **values}) + "\n"


def test_a_truncated_file_is_read_again_without_the_records_read_before(run):
    reader = RecordReader(run)
    append(run, "metrics.jsonl", {"chunk": 1, "seconds": 1.0}, {"chunk": 2, "seconds": 2.0})
    assert len(list(reader.records())) == 2
    (run / "metrics.jsonl").write_text(line(1))
    assert list(reader.records()) == []
    (run / "metrics.jsonl").write_text(line(1) + line(2, loss=0.5))
    assert [record["loss"] for _, record in reader.records()] == [0.5]
    (run / "metrics.jsonl").write_text("")
    assert list(reader.records()) == []
    (run / "metrics.jsonl").write_text(line(1, loss=3.0))
    assert [record["loss"] for _, record in reader.records()] == [3.0]


@pytest.mark.parametrize("longer", [0, 3, 40])
def test_a_file_that_a_rollback_truncated_and_that_grew_past_the_old_end_is_read_again(run, longer):
    """With ``longer`` 0 the old end is the end of a line in the new file too."""
    reader = RecordReader(run)
    append(run, "metrics.jsonl", *({"chunk": chunk, "seconds": 1.0 * chunk} for chunk in (1, 2, 3)))
    assert len(list(reader.records())) == 3
    again = [line(chunk, note="x" * longer) if longer else line(chunk) for chunk in (4, 5, 6)]
    (run / "metrics.jsonl").write_text(line(1) + "".join(again))
    assert [record["chunk"] for _, record in reader.records()] == [4, 5, 6]
    append(run, "metrics.jsonl", {"chunk": 7, "seconds": 7.0})
    assert [record["chunk"] for _, record in reader.records()] == [7]


def test_a_line_that_is_not_json_is_named(run):
    reader = RecordReader(run)
    (run / "metrics.jsonl").write_text(line(1) + "{broken\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl: must have a JSON record in each line"):
        list(reader.records())


def test_a_run_on_another_machine_is_followed_until_its_summary(run, monkeypatch, capsys):
    (run / ".lock").write_text("process 17 on elsewhere")
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 1:
            append(run, "metrics.jsonl", metrics(1_000))
        else:
            monkeypatch.setattr("jaxdqn.cli.outcome.outcome", lambda summary: "done")
            write_json(run / "summary.json", {"solved": True})

    monkeypatch.setattr("jaxdqn.cli.watch.time.sleep", sleep)
    assert watch.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("started on elsewhere: following until its summary" in line for line in lines)
    assert "env steps 990" in lines[-2]
    assert lines[-1] == "done"
    assert len(naps) == 2


def test_once_says_that_the_process_of_another_machine_is_out_of_sight(run, capsys):
    (run / ".lock").write_text("process 17 on elsewhere")
    assert watch.main([str(run), "--once"]) == 0
    assert "it cannot be told whether it is running" in capsys.readouterr().out


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
