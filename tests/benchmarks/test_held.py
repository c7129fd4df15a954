"""Study of settings that hold the solve return: its settings, its file and its table."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import held
from jaxdqn.config.presets import preset


@pytest.mark.parametrize("name", held.SETTINGS)
def test_every_setting_is_a_change_of_the_former_preset(name):
    config, former = (held.configuration(key, 3) for key in (name, "former preset"))
    assert (config.seed, config.stop_when, config.solve_return) == (3, "never", 475.0)
    assert (config == former) is (name == "former preset")


def result(name, seed, stability=1.0, seconds=1.0, end=500.0):
    return {
        "setting": name, "seed": seed, "solve_return": 475.0, "seconds_to_solve": 0.5,
        "seconds_to_hold": seconds, "rows_to_hold": None if seconds is None else 64_000,
        "learning_stability": stability, "eval_return_mean": end, "train_seconds": 1.0,
        "eval_seconds": 0.5,
    }  # fmt: skip


def test_a_repeated_command_trains_only_what_the_file_lacks(tmp_path, monkeypatch, capsys):
    trained = []

    def train(name, seed):
        trained.append((name, seed))
        return result(name, seed)

    monkeypatch.setattr(held, "train", train)
    command = ["--out", str(tmp_path / "held.jsonl"), "--only", "double", "--seeds"]
    assert held.main([*command, "2"]) == 0
    assert held.main([*command, "3"]) == 0
    assert trained == [("double", 0), ("double", 1), ("double", 2)]
    lines = [json.loads(line) for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    assert "| double | 3 | 0.50 | 3 | 1.00 | 64,000 | 3 | 1.000 | 1.50 |" in capsys.readouterr().out


def test_an_interrupted_run_is_no_result(tmp_path, monkeypatch, capsys):
    summary = {"interrupted": True, "ended_by": "SIGTERM"}
    stopped = SimpleNamespace(summary=summary)
    monkeypatch.setattr("jaxdqn.run.runner.run", lambda config, loggers: stopped)
    file = tmp_path / "held.jsonl"
    assert held.main(["--out", str(file), "--only", "double", "--seeds", "1"]) == 1
    assert "double, seed 0: stopped by SIGTERM; repeat the command" in capsys.readouterr().err
    assert not file.exists() or file.read_text() == ""


def test_the_table_counts_who_holds_and_takes_medians_over_all_seeds():
    runs = [result("double", 0), result("double", 1, 0.5, None, 9.0), result("double", 2, 0.9)]
    assert held.table(runs).endswith("| double | 3 | 0.50 | 2 | 1.00 | 64,000 | 2 | 0.800 | 1.50 |")
    runs[0] = result("double", 0, 1.0, None)
    assert held.table(runs).endswith("| double | 3 | 0.50 | 1 | - | - | 2 | 0.800 | 1.50 |")


def test_the_late_drop_compares_the_last_third_with_the_best():
    assert held.late_drop([1.0, 10.0, 10.0, 10.0, 10.0, 8.0]) == pytest.approx(0.2)
    assert held.late_drop([-500.0, -80.0, -100.0]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "only='nothing': must be a setting of the study or a preset"),
        (["--seeds", "0"], "seeds=0: must be at least 1"),
    ],
)
def test_an_invalid_request_is_one_line(arguments, message, tmp_path, capsys):
    assert held.main(["--out", str(tmp_path / "held.jsonl"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_last_setting_of_the_study_is_the_preset():
    config = held.configuration(list(held.SETTINGS)[-1], 3)
    assert config == preset("cartpole", seed=3, checkpoint_every=0, stop_when="never")
