"""Runs on Ray whose environments are on the host: EnvPool and the Arcade Learning Environment."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (
    *(sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", "--actors", "2"),
    *("--replay", "prioritized", "--eval-every", "0", "--stop-when", "never", "--log-every", "512"),
)
RUNS = {
    "envpool": (
        *("--env", "envpool:CartPole-v1", "--total-rows", "6000", "--eval-episodes", "4"),
        *("--n-step", "3", "--importance-ratios", "--target-epsilon", "0.05"),
    ),
    "ale_py": (
        *("--env", "ale:pong", "--env-arg", "max_num_frames_per_episode=400"),
        *("--clip-rewards", "--frame-stack", "4", "--num-envs", "4", "--batch-size", "8"),
        *("--warmup-rows", "256", "--replay-capacity", "4096", "--total-rows", "2000"),
        *("--eval-episodes", "1", "--block-rows", "128"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", RUNS)
def test_actors_share_the_environments_of_a_suite(package: str, tmp_path: Path) -> None:
    for name in ("ray", package):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    out = tmp_path / "run"
    done = subprocess.run(
        [*COMMAND, *RUNS[package], "--out", str(out)],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mapping"] == "ray, 2 actors, 1 shard, 1 learner"
    assert summary["gradient_steps"] > 0
    assert summary["worker_restarts"] == 0
    counted = summary["ray_rows"]
    assert counted["taken"] == summary["rows"] == counted["stored"] + counted["on_their_way"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["episodes"] for record in records) > 0
    for actor in (0, 1):
        assert max(record[f"actor_{actor}_rows_per_second"] for record in records) > 0
