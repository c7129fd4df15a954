"""Known results of the presets over five seeds, recorded in benchmarks/results/learning."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from jaxdqn.config.algorithm_presets import ABLATIONS, ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "learning"
SEEDS = range(5)


def _record(name: str, summaries: list[dict], **more: object) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    fields = (
        "seed", "env_steps", "gradient_steps", "train_seconds", "compile_seconds", "solved",
        "seconds_to_solve", "held", "seconds_to_hold", "rows_to_hold", "learning_stability",
        "eval_return_mean", "best_eval_return_mean", "best_fresh_return_mean",
    )  # fmt: skip
    record = {
        "preset": name,
        "versions": summaries[0]["versions"],
        "device": summaries[0]["device_kind"],
        "machine": platform.machine(),
        **more,
        "seeds": [{field: summary[field] for field in fields} for summary in summaries],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _train(
    name: str, directory: Path, seeds: range = SEEDS, more: Sequence[str] = ()
) -> tuple[list[dict], np.ndarray]:
    """Train a preset on each seed; return summaries and the fresh returns of the best policies.

    Each seed is a separate process of the command line. Times and records are then those of a
    user's run, without the settings and the virtual devices of the tests.
    """
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"}
    summaries = []
    for seed in seeds:
        out = directory / f"{name}-{seed}"
        command = [sys.executable, "-m", "jaxdqn", "run", name]
        subprocess.run(
            [*command, "--seed", str(seed), "--out", str(out), *more],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        summaries.append(json.loads((out / "summary.json").read_text()))
    return summaries, np.array([summary["best_fresh_return_mean"] for summary in summaries])


def frozen_lake_optimum(steps: int = 100) -> float:
    """Return the highest probability of reaching the goal within the time limit.

    Computed by backward induction over the slippery 4x4 map.
    """
    desc = "SFFFFHFHFFFHHFFG"
    moves = ((0, -1), (1, 0), (0, 1), (-1, 0))

    def move(position: int, action: int) -> int:
        row = min(max(position // 4 + moves[action][0], 0), 3)
        column = min(max(position % 4 + moves[action][1], 0), 3)
        return 4 * row + column

    def outcome(value: np.ndarray, position: int) -> float:
        return {"G": 1.0, "H": 0.0}.get(desc[position], value[position])

    value = np.zeros(16)
    for _ in range(steps):
        value = np.array(
            [
                max(
                    np.mean([outcome(value, move(p, (a + slip) % 4)) for slip in (-1, 0, 1)])
                    for a in range(4)
                )
                for p in range(16)
            ]
        )
    return float(value[0])


def deep_sea_optimum(size: int = 8) -> float:
    """Return the optimal return, that of always moving right, by backward induction."""
    value = np.zeros(size)
    for _ in range(size):
        left = np.array([value[max(c - 1, 0)] for c in range(size)])
        right = np.array(
            [value[min(c + 1, size - 1)] - 0.01 / size + (c == size - 1) for c in range(size)]
        )
        value = np.maximum(left, right)
    return float(value[0])


def test_the_frozen_lake_optimum_has_its_known_value():
    assert frozen_lake_optimum(1_000) == pytest.approx(14 / 17, abs=1e-3)
    assert 0.7 < frozen_lake_optimum() < 14 / 17


def test_the_deep_sea_optimum_is_the_reward_minus_the_cost_of_moving():
    assert deep_sea_optimum() == pytest.approx(0.99)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bar"),
    [
        ("acrobot", -100.0),
        ("mountaincar", -120.0),
        ("catch", 0.95),
        ("deepsea", 0.97 * deep_sea_optimum()),
        ("frozenlake", 0.97 * frozen_lake_optimum()),
        ("breakout", 10.0),
        ("memorychain", 0.95),
        ("lunarlander", 200.0),
    ],
)
def test_preset_reaches_its_known_result(name, bar, tmp_path):
    summaries, returns = _train(name, tmp_path)
    _record(name, summaries, bar=bar, mean=float(returns.mean()))
    assert returns.mean() >= bar, f"{name}: {returns.tolist()}"


@pytest.mark.slow
def test_plain_dqn_is_at_chance_on_a_memory_chain(tmp_path):
    summaries, returns = _train("dqn", tmp_path, more=["--env", "MemoryChain-bsuite"])
    _record("memorychain-dqn", summaries, bar="chance, 0", mean=float(returns.mean()))
    assert np.abs(returns).max() < 0.15, returns.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    # dqn-2015 has the learning rate and cadence of Atari, not those of a minute of CartPole.
    "name",
    [name for name in ALGORITHMS if name not in ("dqn", "dqn-2015") and name not in ABLATIONS],
)
def test_every_member_of_the_family_solves_cartpole(name, tmp_path):
    summaries, returns = _train(name, tmp_path)
    _record(f"cartpole-{name}", summaries, bar=475.0, mean=float(returns.mean()))
    assert returns.mean() >= 475, f"{name}: {returns.tolist()}"


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", ["0", "0.02"])
def test_dqn_with_importance_ratios_solves_cartpole(epsilon, tmp_path):
    more = ("--n-step", "5", "--importance-ratios", "--target-epsilon", epsilon)
    (summary,), _ = _train("dqn", tmp_path, range(1), more)
    assert summary["solved"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("dqn", "cartpole-dqn"), ("cartpole", "cartpole")])
def test_cartpole_is_solved_on_nearly_every_seed(name, file, tmp_path):
    summaries, _ = _train(name, tmp_path, range(20))
    times = {
        goal: sorted(s[f"seconds_to_{verb}"] for s in summaries if s[goal])
        for goal, verb in (("solved", "solve"), ("held", "hold"))
    }
    _record(file, summaries, bar="19 of 20 solved", **times)
    assert len(times["solved"]) >= 19
    assert name == "dqn" or len(times["held"]) == 20


@pytest.mark.slow
def test_cartpole_is_held_to_the_end_of_the_budget(tmp_path):
    summaries, _ = _train("cartpole", tmp_path, range(20), ["--stop-when", "never"])
    stability = [summary["learning_stability"] for summary in summaries]
    ends = [summary["eval_return_mean"] for summary in summaries]
    _record("cartpole-held", summaries, bar="20 held, 20 at 475 at the end, 95 % in between")
    assert all(summary["held"] for summary in summaries)
    assert min(ends) >= 475, ends
    assert np.mean(stability) >= 0.95, stability
