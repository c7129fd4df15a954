"""Benchmark of driving policies against constant actions."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import driving
from jaxdqn.envs.vector import HostEnvironment, host_environment
from tests.toys import cycle
from tests.training.test_vector_trainer import OnHost


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 999])
def test_intervals_are_those_of_student(degrees):
    assert driving.student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)
    values = np.linspace(0, 1, degrees + 1)
    low, high = stats.t.interval(0.95, degrees, values.mean(), stats.sem(values))
    mean, half = driving.interval_of(values)
    assert (mean, half) == (pytest.approx(0.5), pytest.approx((high - low) / 2, rel=0.01))


def test_a_row_has_the_mean_and_its_interval():
    returns = np.linspace(0, 1, 5)
    low, high = stats.t.interval(0.95, 4, 0.5, stats.sem(returns))
    record = driving.policy_record("seed 0", "toy", returns, np.array([True] * 2 + [False] * 3))
    row = driving.table_row(record)
    assert row[2:4] == (f"0.50 ± {(high - low) / 2:.2f}", "60.0%")


def test_a_constant_action_is_judged_by_whole_episodes_of_every_environment():
    environment = cycle([1.0, 2.0, 4.0, 8.0], limit=9, terminal_at=3)
    host = HostEnvironment(environment.spec, lambda num_envs: OnHost(environment, num_envs))
    returns, crashes = driving.judge_action(host, 40, 0)
    assert len(returns) == 64  # two of each of 32 environments
    np.testing.assert_array_equal(returns, 1 + 2 + 4)
    assert crashes.all()
    record = driving.policy_record("constant", "toy", returns, crashes)
    assert driving.table_row(record) == ("constant", "toy", "7.00 ± 0.00", "0.0%", "")


def test_policies_and_their_mean_over_seeds_are_written_as_json(tmp_path, monkeypatch, capsys):
    environment = cycle([1.0, 2.0, 4.0, 8.0], limit=9, terminal_at=3)
    host = HostEnvironment(environment.spec, lambda num_envs: OnHost(environment, num_envs))
    monkeypatch.setattr("jaxdqn.envs.vector.host_environment", lambda *arguments: host)

    def trained(config, seed, environments, out):
        results = np.float32([seed, seed + 2]), np.array([True, False])
        return {"train_seconds": 9.0}, dict.fromkeys(environments, results)

    monkeypatch.setattr(driving, "train_and_judge", trained)
    file = tmp_path / "driving.json"
    assert driving.main(["--seeds", "2", "--episodes", "4", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["over_seeds"]["EnvPool"]["return_mean"] == 1.5
    constant, first, second = report["policies"]
    assert (constant["policy"], constant["train_seconds"]) == ("constant LANE_LEFT", None)
    assert (first["policy"], first["return_mean"], first["share_without_crash"]) == (
        "seed 0",
        1,
        0.5,
    )
    assert (second["return_mean"], second["train_seconds"]) == (2, 9.0)
    assert report["flags"]["episodes"] == 4
    assert "seed 1" in capsys.readouterr().out
    assert driving.main(["--json", str(tmp_path)]) == 2
    assert "must be a file, not a directory" in capsys.readouterr().err


def test_slower_is_the_best_constant_action_and_faster_crashes():
    pytest.importorskip("envpool")
    host = host_environment("envpool:HighwayFast-v0", {})
    slower, faster = (driving.judge_action(host, 96, action) for action in (4, 3))
    assert driving.best_action(host, 96) == driving.ACTIONS.index("SLOWER")
    assert slower[0].mean() == pytest.approx(21, abs=0.7)
    assert slower[1].mean() < 0.1
    assert faster[1].mean() > 0.9


@pytest.mark.parametrize("option", ["seeds", "episodes", "original"])
def test_an_invalid_count_is_named(option, capsys):
    assert driving.main([f"--{option}", "-1"]) == 2
    assert f"{option}=-1: must be at least" in capsys.readouterr().err
