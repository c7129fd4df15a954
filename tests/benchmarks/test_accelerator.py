"""The accelerator benchmark: its cells, its records, its targets and its tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import configs, peers, runs, tables, worker
from benchmarks.accelerator.plan import FULL, SECTION_SECONDS, TINY, Cell, measured_by
from benchmarks.accelerator.sections import cells_of
from benchmarks.accelerator.store import Store, failures_of, results_of
from benchmarks.accelerator.worker import Request
from tests.studies import ROOT

STAMP = {"device_kind": "cpu", "platform": "cpu", "versions": {"jax": "1"}, "time": "1"}


def request(out, **fields):
    return Request(**{"section": "rates", "out": str(out), "seconds": 60.0, "launch": "1"} | fields)


def counting(name, calls, result=None):
    """Return a cell that notes its name in ``calls``; a result that is an error is raised."""

    def measure():
        calls.append(name)
        if isinstance(result, Exception):
            raise result
        return result or {"value": name}

    return Cell(name, measured_by(measure))


def test_a_failed_cell_is_recorded_by_name_and_the_others_are_measured(tmp_path):
    calls = []
    memory = RuntimeError("RESOURCE_EXHAUSTED: out of memory\n\nmore")
    cells = [counting("a", calls), counting("b", calls, memory), counting("c", calls)]
    worker.measure_section(request(tmp_path), cells, STAMP)
    records = Store(tmp_path).read("rates")
    assert calls == ["a", "b", "c"]
    assert results_of(records) == {"a": {"value": "a"}, "c": {"value": "c"}}
    assert failures_of(records) == {"b": "RuntimeError: RESOURCE_EXHAUSTED: out of memory"}


@pytest.mark.parametrize(
    ("fields", "stamp", "repeated"),
    [
        ({}, {}, ["bad"]),
        ({"again": True}, {}, ["good", "bad"]),
        ({"tiny": True}, {}, ["good", "bad"]),
        ({}, {"device_kind": "other"}, ["good", "bad"]),
        ({}, {"versions": {"jax": "2"}}, ["good", "bad"]),
        ({"launch": "1", "again": True}, {}, []),
    ],
)
def test_a_second_call_skips_what_is_done_on_this_device(tmp_path, fields, stamp, repeated):
    calls = []
    cells = [counting("good", calls), counting("bad", calls, ValueError("no"))]
    worker.measure_section(request(tmp_path), cells, STAMP)
    calls.clear()
    second = request(tmp_path, **{"launch": "2", **fields})
    worker.measure_section(second, cells, {**STAMP, **stamp})
    assert calls == repeated


def test_cells_after_the_time_of_a_section_are_recorded_as_not_begun(tmp_path):
    calls = []
    worker.measure_section(request(tmp_path, seconds=0.0), [counting("a", calls)], STAMP)
    assert calls == []
    assert failures_of(Store(tmp_path).read("rates")) == {"a": worker.NO_TIME}


def test_every_program_is_compiled_before_the_first_cell_is_measured(tmp_path):
    events = []

    def cell(name):
        def prepare():
            events.append(f"trace {name}")
            return lambda: events.append("compile")

        return Cell(name, measured_by(lambda: events.append(f"measure {name}") or {}), prepare)

    worker.measure_section(request(tmp_path), [cell("a"), cell("b")], STAMP)
    assert events[:4].count("compile") == 2
    assert events[4:] == ["measure a", "measure b"]


def test_an_error_of_compilation_is_that_of_its_cell(tmp_path):
    def prepare():
        raise ValueError("num_envs=3: must be 4")

    cells = [Cell("a", measured_by(dict), prepare), counting("b", [])]
    worker.measure_section(request(tmp_path), cells, STAMP)
    records = Store(tmp_path).read("rates")
    assert failures_of(records) == {"a": "ValueError: num_envs=3: must be 4"}
    assert list(results_of(records)) == ["b"]


def test_the_cell_that_ran_when_the_process_died_has_the_reason(tmp_path, monkeypatch):
    store, asked = Store(tmp_path), request(tmp_path)
    ends = iter(["exit code -6: CUDA_ERROR", None])

    def run_worker(request):
        ended = next(ends)
        failed = {} if ended is None else {"failed": worker.RUNNING}
        store.write("rates", str(ended), {"launch": "1", "result": {}, **failed})
        return ended

    monkeypatch.setattr(command, "run_worker", run_worker)
    assert command.measure(asked, store) is None  # the second process measures the rest
    assert failures_of(store.read("rates")) == {
        "exit code -6: CUDA_ERROR": "exit code -6: CUDA_ERROR"
    }


def test_the_process_of_a_section_is_ended_after_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "GRACE_SECONDS", 0.0)
    started = subprocess.Popen

    def sleeping(command, **options):
        return started([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(command.subprocess, "Popen", sleeping)
    assert "were over" in command.run_worker(request(tmp_path, seconds=0.2))


@pytest.mark.parametrize("sizes", [FULL, TINY])
@pytest.mark.parametrize(
    "of", [configs.rate_configs, configs.population_configs, configs.replay_configs,
           configs.memory_configs, configs.kernel_configs],
)  # fmt: skip
def test_every_configuration_is_valid(of, sizes):
    assert of(sizes)


@pytest.mark.parametrize("sizes", [FULL, TINY])
def test_every_section_has_cells_of_different_names(sizes):
    for section in sorted(set(SECTION_SECONDS) - {"peers"}):
        names = [cell.name for cell in cells_of(section, sizes)]
        assert names
        assert len(set(names)) == len(names)


def test_a_run_finds_the_programs_that_its_cell_has_compiled(monkeypatch):
    found = []

    class Found(Exception):
        pass

    def in_run(static, *_):
        found.append(static)
        raise Found

    monkeypatch.setattr(runs, "compiled_programs", lambda static, *_: found.append(static))
    monkeypatch.setattr("jaxdqn.run.runner.compiled_programs", in_run)
    (cell,) = runs.solve_cells(TINY)
    assert cell.prepare is not None
    cell.prepare()()
    with pytest.raises(Found):
        cell.measure(60.0)
    assert found[0] is found[1]


def test_the_work_of_dqn_and_of_pqn_is_equal():
    found = configs.replay_configs(FULL)
    work = [
        (c.rows_per_iteration, c.gradient_steps_per_iteration, c.batch_per_device)
        for c in (found["uniform, work of pqn"], found["pqn"])
    ]
    assert work[0] == work[1] == (128 * 32, 64, 128)


def test_the_batch_grows_with_the_environments_up_to_its_bound():
    sizes = {
        name: (config.num_envs, config.batch_size)
        for name, config in configs.rate_configs(FULL).items()
        if name.startswith("cartpole dqn")
    }
    assert list(sizes.values()) == [
        (32, 128), (512, 512), (8_192, 1_024), (65_536, 1_024)
    ]  # fmt: skip


def test_all_sections_but_peers_take_less_than_nine_minutes():
    assert sum(SECTION_SECONDS.values()) - SECTION_SECONDS["peers"] < 9 * 60


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sections", "peers"], "peer=(): must name a peer"),
        (["--section-seconds", "0"], "section_seconds=0.0: must be above 0"),
        (["--peer", "sb3"], "peer='sb3': must be purejaxrl=FILE or purejaxql=FILE"),
        (["--peer", "purejaxrl=absent.py"], "there is no absent.py"),
        (["--peer-python", "absent"], "peer_python='absent': must be a Python interpreter"),
        (["--sections", "speed"], "sections"),
    ],
)
def test_invalid_flags_are_errors_before_anything_is_measured(capsys, argv, message):
    assert command.main(argv) == 2
    assert message in capsys.readouterr().err


def test_peers_are_measured_only_if_they_are_given():
    assert "peers" not in command.chosen_sections(command.Flags())
    assert "peers" in command.chosen_sections(command.Flags(peer=("purejaxrl=a",)))


def versus(monkeypatch, result, code=0):
    """Replace the process of ``benchmarks.versus`` by one that writes a result."""

    def run(command, **options):
        assert command[command.index("--peer-python") + 1] == "of-peers"
        assert command[1:5] == ["-m", "benchmarks.versus", "--peer", "purejaxrl=dqn.py"]
        file = command[command.index("--json") + 1]
        if code == 0:
            Path(file).write_text(json.dumps({"results": [result]}))
        return subprocess.CompletedProcess(command, code, "", "first\nlast line\n")

    monkeypatch.setattr(peers.subprocess, "run", run)


def test_a_peer_has_the_result_of_versus(monkeypatch):
    rate = {"median": 2.0, "low": 1.0, "high": 3.0}
    result = {"gradient_steps_per_second": rate, "jaxdqn_gradient_steps_per_second": rate,
              "ratio": rate}  # fmt: skip
    versus(monkeypatch, result)
    (cell,) = peers.peer_cells(["purejaxrl=dqn.py"], "of-peers", FULL)
    assert cell.name == "purejaxrl"
    assert cell.measure(10.0) == result
    line = tables.section_table("peers", {cell.name: result}).splitlines()[1]
    assert line.split() == ["purejaxrl", "2.00", "2.00", "2.00", "(1.00-3.00)"]


@pytest.mark.parametrize(
    ("result", "code", "reason"), [({"missing": "no flashbax"}, 0, "no flashbax"), ({}, 2, "last")]
)
def test_a_peer_that_cannot_be_measured_is_an_error_with_its_reason(
    monkeypatch, result, code, reason
):
    versus(monkeypatch, result, code)
    (cell,) = peers.peer_cells(["purejaxrl=dqn.py"], "of-peers", FULL)
    with pytest.raises(RuntimeError, match=reason):
        cell.measure(10.0)


def test_the_interpreter_of_the_peers_reaches_their_section(monkeypatch, tmp_path):
    file = tmp_path / "dqn.py"
    file.touch()
    asked = []
    monkeypatch.setattr(command, "measure", lambda request, store: asked.append(request))
    arguments = [
        "--sections",
        "peers",
        "--peer",
        f"purejaxrl={file}",
        "--peer-python",
        sys.executable,
    ]
    command.main([*arguments, "--out", str(tmp_path / "out")])
    assert [each.peer_python for each in asked] == [sys.executable]
    (cell,) = cells_of("peers", FULL, asked[0].peers, "of-peers")
    assert cell.measure.args[1] == "of-peers"


def test_processes_of_peers_share_the_memory_of_the_device(tmp_path):
    shared = "XLA_PYTHON_CLIENT_PREALLOCATE"
    assert command.worker_environment(request(tmp_path, section="peers"))[shared] == "false"
    assert shared not in command.worker_environment(request(tmp_path))


def test_results_of_another_device_are_not_in_the_report(tmp_path, capsys):
    store, mine = Store(tmp_path), {**STAMP, "device_kind": "mine"}
    old = {"launch": "1", "tiny": False, "stamp": STAMP, "result": {"seconds_to_solve": 0.1}}
    store.write("solve", "seed 0", old)
    report = {"tiny": False, "sections": {"rates": {"ended": None, "cells": {
        "a": {"stamp": mine, "tiny": False, "failed": "no memory"}}}}}  # fmt: skip
    monkey = pytest.MonkeyPatch()
    monkey.setattr(command, "describe", str)
    assert command.finish(store, report) == 1
    monkey.undo()
    written = json.loads((tmp_path / "report.json").read_text())
    assert [target["text"] for target in written["targets"]] == ["not measured"] * 5
    assert "failed: rates, a: no memory" in capsys.readouterr().err


def test_a_report_without_any_cell_is_written(tmp_path):
    store = Store(tmp_path)
    store.write("solve", "seed 0", {"launch": "1", "tiny": False, "stamp": STAMP, "result": {}})
    ended = {"rates": {"ended": "exit code 1: no module", "cells": {}}}
    assert command.finish(store, {"tiny": False, "sections": ended}) == 1
    assert json.loads((tmp_path / "report.json").read_text())["stamp"] is None


@pytest.mark.slow
def test_the_whole_command_runs_at_tiny_sizes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", "--tiny", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["sections"]) == set(SECTION_SECONDS) - {"peers"}
    for section in report["sections"].values():
        assert section["cells"]
        assert not failures_of(section["cells"])
    assert results_of(report["sections"]["bitwise"]["cells"])["resume, default"]["bitwise"]
    kernel = results_of(report["sections"]["kernels"]["cells"])["cartpole"]
    assert {"act", "env", "learn"} <= set(kernel["kernel_us_by_part"])
    assert (tmp_path / "rates.png").exists()
