"""Results file of a study: its content, and the handling of damaged lines."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdqn.cli.study import __main__
from jaxdqn.cli.study.results import append_results, read_results, repair
from jaxdqn.errors import RunFailed
from jaxdqn.run.compile import Programs
from jaxdqn.storage.directory import read_config
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.types import Counter, Counters, Metrics
from tests.cli.test_cli import python
from tests.studies import SMALL, cells_of, lines, study


@pytest.mark.parametrize("kept", [1, 300, -2])
def test_a_truncated_last_line_is_removed_and_its_seed_trained_again(kept, recorded, fake, capsys):
    *complete, last = recorded.read_bytes().splitlines(keepends=True)
    recorded.write_bytes(b"".join(complete) + last[:kept])
    # A dry run does not change the file.
    assert study("--dry-run", seeds=3) == 0
    assert "seeds 0-1 done" in capsys.readouterr().out
    assert recorded.read_bytes() == b"".join(complete) + last[:kept]
    assert study(seeds=3) == 0
    assert "the last line was truncated and is removed" in capsys.readouterr().out
    assert recorded.read_bytes() == b"".join(complete) + last


def test_a_last_line_without_its_line_break_is_kept(recorded, fake):
    before = recorded.read_bytes()
    recorded.write_bytes(before[:-1])
    assert study(seeds=4) == 0
    assert fake.seeds[1:] == [[3]]
    assert recorded.read_bytes().startswith(before)
    assert [result["seed"] for result in lines()] == [0, 1, 2, 3]


def damaged(lines, kind):
    result = json.loads(lines[1])
    if kind == "truncated":
        lines[1] = lines[1][:100]
    elif kind == "not an object":
        lines[1] = "[1, 2]"
    elif kind == "a missing field":
        del result["final_return"]
    elif kind == "a word instead of a number":
        result["seed"] = "one"
    elif kind == "a curve of two lengths":
        result["curve"]["rows"].append(1)
    elif kind == "words in the curve":
        result["curve"]["return_mean"][0] = "high"
    elif kind == "fewer seconds than rows":
        result["curve"]["seconds"].pop()
    elif kind == "words in the seconds":
        result["curve"]["seconds"][0] = "late"
    elif kind == "a line twice":
        result = json.loads(lines[0])
    if kind not in ("truncated", "not an object"):
        lines[1] = json.dumps(result)
    return lines


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "line 2: not valid JSON"),
        ("not an object", "line 2: not a JSON object"),
        ("a missing field", "line 2: final_return is missing"),
        ("a word instead of a number", "line 2: seed='one': wrong type"),
        ("a curve of two lengths", "line 2: curve must have as many rows as return_mean"),
        ("words in the curve", "line 2: curve.return_mean must be numbers"),
        ("fewer seconds than rows", "line 2: curve must have as many seconds as rows"),
        ("words in the seconds", "line 2: curve.seconds must be numbers"),
        ("a line twice", "line 2 has the same cell and seed as line 1"),
    ],
)
def test_a_damaged_line_is_an_error_that_names_the_line(kind, message, recorded, fake, capsys):
    text = "\n".join(damaged(recorded.read_text().splitlines(), kind)) + "\n"
    recorded.write_text(text)
    for more in ([], ["--report"], ["--dry-run"]):
        assert study(*more, seeds=5) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: results='study/results.jsonl': must ")
        assert message in line
    assert recorded.read_text() == text
    assert len(fake.made) == 1


def test_results_that_do_not_fit_on_the_disk_leave_the_file_unchanged(recorded, monkeypatch):
    before, stored = recorded.read_bytes(), read_results(recorded).results
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    with pytest.raises(RunFailed, match="No space left"):
        append_results(recorded, stored)
    assert recorded.read_bytes() == before


def test_results_of_earlier_versions_lack_optional_fields_and_are_read(recorded, capsys):
    results = [json.loads(line) for line in recorded.read_text().splitlines()]
    for result in results:
        for name in ("training_return", "env_steps", "distinct_episodes"):
            del result[name]
    recorded.write_text("".join(json.dumps(result) + "\n" for result in results))
    assert __main__.main(["--report", "--out", "study"]) == 0
    assert "best 0.50\n" in Path("study/report.md").read_text()


def test_results_with_former_field_names_belong_to_the_same_cell(recorded, fake, capsys):
    results = [json.loads(line) for line in recorded.read_text().splitlines()]
    for result in results:
        result["total_steps"] = result.pop("total_rows")
        for name in ("total", "warmup", "epsilon_decay"):
            result["config"][f"{name}_steps"] = result["config"].pop(f"{name}_rows")
    text = "".join(json.dumps(result) + "\n" for result in results)
    recorded.write_text(text)
    assert study(seeds=4) == 0
    assert fake.seeds[1:] == [[3]]
    assert recorded.read_text().startswith(text)
    assert "4 seeds" in Path("study/report.md").read_text()


def test_repair_does_not_change_a_complete_file(recorded):
    before = recorded.stat().st_mtime_ns
    assert repair(recorded, read_results(recorded)) is None
    assert recorded.stat().st_mtime_ns == before
    assert read_results(Path("nowhere")).results == []


def scripted(static, config, keys, check):
    """Return programs of two learners without compilation; the return is 10 * learner + chunks."""

    def state(chunks):
        rows = chunks * config.iterations_per_chunk * config.rows_per_iteration
        count = Counter(high=np.zeros(2, np.int32), low=np.full(2, rows, np.int32))
        params = {"kernel": np.full((2, 3), chunks, np.float32)}
        return SimpleNamespace(
            agent=SimpleNamespace(params=params), counters=Counters(count, count, count)
        )

    def init(key, hyper):
        return state(0), state(0).counters

    def chunk(before):
        after = state(int(before.agent.params["kernel"][0, 0]) + 1)
        metrics = Metrics(*(np.ones(2, np.float32) for _ in Metrics._fields))._replace(
            illegal=(), diagnostics=()
        )
        return after, (
            metrics._replace(skipped=np.zeros(2), lost=np.zeros(2), extra={}),
            after.counters,
        )

    def evaluate(params, key, count):
        learners, chunks = np.arange(2) * 10, params["kernel"][..., 0]
        returns = np.broadcast_to(np.expand_dims(learners + chunks, -1), (2, 4))
        return EvalInfo(returns, np.full((2, 4), 7), np.tile([0, 0, 0, 1], (2, 1)))

    fields = dict.fromkeys(Programs._fields) | Programs._field_defaults
    fields |= {"init": init, "chunk": chunk, "evaluate": evaluate}
    fields |= {"params": lambda state: state.agent.params}
    own = {"evaluate_one": evaluate, "copy": np.array}
    return Programs(**fields | own)


def test_results_agree_with_the_records_of_the_host_loop(monkeypatch, capsys):
    monkeypatch.setattr("jaxdqn.run.runner.compiled_programs", scripted)
    argv = ["--total-rows", "632", "--set", *SMALL, "checkpoint_every=0"]
    assert study(*argv) == 0
    assert "recorded seeds 0-1: return 6.00, 16.00" in capsys.readouterr().out
    # Six chunks of 100 rows, with an evaluation after every second one.
    for seed, result in enumerate(lines()):
        assert (result["seed"], result["population"], result["eval_episodes"]) == (seed, 2, 4)
        seconds = result["curve"].pop("seconds")
        assert len(seconds) == 3
        assert 0 < seconds[0] < seconds[1] < seconds[2]
        assert result["curve"] == {
            "rows": [200, 400, 600],
            "return_mean": [10.0 * seed + chunks for chunks in (2, 4, 6)],
        }
        assert result["final_return"] == result["best_return"] == 10 * seed + 6
        assert result["distinct_episodes"] == 2
        assert result["env_steps"] == 600
        assert result["versions"]["jax"] == jax.__version__
        assert result["env_steps_per_second"] > 0


@pytest.mark.slow
def test_a_small_study_from_end_to_end(capsys):
    argv = ["--total-rows", "600", "--set", *SMALL]
    assert study(*argv) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "recorded seeds 0-1: return" in output.out
    first, second = lines()
    assert cells_of([first, second]) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]
    for result in (first, second):
        assert len(result["curve"]["rows"]) >= 3
        # 600 rows; the last chunk may exceed them.
        assert 600 <= result["curve"]["rows"][-1] < 700
        assert result["curve"]["return_mean"][-1] == result["final_return"]
        assert max(result["curve"]["return_mean"]) == result["best_return"]
        assert result["env_steps_per_second"] > 0
    assert first["curve"]["return_mean"] != second["curve"]["return_mean"]
    assert "(2 seeds)" in Path("study/report.md").read_text()
    directory = Path("study/cells", first["run"])
    assert (read_config(directory).num_seeds, (directory / "checkpoints").exists()) == (2, False)
    assert {path.name for path in Path("study").iterdir()} == {
        ".lock", "cells", "curves.png", "report.md", "results.jsonl",
    }  # fmt: skip
    # Everything is recorded: nothing is compiled.
    before = time.perf_counter()
    assert study(*argv) == 0
    assert "runs to make: 0" in capsys.readouterr().out
    assert time.perf_counter() - before < 5
    assert len(lines()) == 2


@pytest.mark.slow
def test_a_study_killed_and_resumed_has_the_results_of_an_uninterrupted_one():
    long = ["--presets", "dqn", "pqn", "--envs", "CartPole-v1", "--seeds", "2"]
    long += ["--total-rows", "81920", "--set", "eval_every=20480", "eval_episodes=8"]
    long += ["log_every=4096", "hidden_sizes=16"]
    uninterrupted = python("-m", "jaxdqn", "study", *long, "--out", "uninterrupted")
    _, err = uninterrupted.communicate(timeout=300)
    assert uninterrupted.returncode == 0, err

    def rows():
        return sum(len(file.read_text()) for file in Path().glob("killed/cells/*/metrics.jsonl"))

    for kills in range(4):
        before = rows()
        process = python("-m", "jaxdqn", "study", *long, "--out", "killed")
        while kills < 3 and process.poll() is None and rows() <= before:
            time.sleep(0.05)
        if kills < 3:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        assert process.returncode == 0, err
        assert ("interrupted (SIGTERM)" in out) == (kills < 3)

    timings = ("seconds", "per_second")

    def reproducible(out):
        return [
            {name: value for name, value in line.items() if not name.endswith(timings)}
            for line in lines(out)
        ]

    assert reproducible("killed") == reproducible("uninterrupted")
    assert len(reproducible("killed")) == 4
