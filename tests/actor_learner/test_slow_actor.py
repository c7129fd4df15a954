"""A slow actor does not slow the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ray_runs import rate, records_of

MODULE = """
import os, time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Simulator(CartPoleEnv):
    # Steps take 10 ms, and one second in the process that makes the directory `claim` first.
    def __init__(self, claim=None, **options):
        super().__init__(**options)
        self.claim, self.steps, self.slow = claim, 0, False

    def step(self, action):
        self.steps += 1
        if self.claim and self.steps == 60:
            try:
                os.mkdir(self.claim)
                self.slow = True
            except FileExistsError:
                pass
        time.sleep(1.0 if self.slow else 0.01)
        return super().step(action)


gymnasium.register("Simulator-v0", entry_point=Simulator, max_episode_steps=50)
"""


@pytest.mark.slow
def test_an_actor_of_four_that_sleeps_does_not_slow_the_learner_by_more_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("gymnasium")
    (tmp_path / "slow_module.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = [
        *("--env", "gymnasium:slow_module:Simulator-v0", "--actors", "4", "--block-rows", "32"),
        *("--num-envs", "8", "--rollout-length", "4", "--batch-size", "32", "--replay"),
        *("prioritized", "--replay-capacity", "8192", "--warmup-rows", "256", "--log-every"),
        *("200", "--total-rows", "4000", "--eval-episodes", "1"),
    ]
    usual = rate(records_of(options, seconds=100), "gradient_steps")
    claim = tmp_path / "claimed"
    slowed = records_of([*options, "--env-arg", f"claim={claim}"], seconds=150)
    assert claim.exists()
    rates = sorted(slowed[-1][f"actor_{index}_rows_per_second"] for index in range(4))
    assert rates[0] < 0.2 * rates[1]
    # Three quarters are left; the rest of the bar is for noise.
    assert rate(slowed, "gradient_steps") >= 0.65 * usual
