"""Runs of environments of the suites: short ones of every suite, and those that solve a task."""

import dataclasses
import json
from importlib.util import find_spec

import numpy as np
import pytest

import jaxdqn
from jaxdqn.cli import explain
from jaxdqn.run import run
from tests.toys import quick_runs, tiny


def skip_without(name):
    suite = name.partition(":")[0]
    if find_spec(suite) is None:
        pytest.skip(f"the extra {suite} is not installed")


@pytest.mark.slow
def test_a_run_trains_resumes_and_acts_again(tmp_path, capsys):
    skip_without("pgx:minatar-breakout")
    argument = "max_episode_steps=9"
    config = tiny(env="pgx:minatar-breakout", env_args=(argument,), eval_every=0, eval_episodes=2)
    with quick_runs():
        result = run(config, out=tmp_path / "run")
        assert 300 < result.summary["env_steps"] < result.summary["rows"]
        run(config, out=tmp_path / "run", resume=True)
    spec = json.loads((tmp_path / "run" / "parts.json").read_text())["spec"]
    assert spec["name"] == "pgx:minatar-breakout"
    assert (spec["obs_dtype"], spec["arguments"]) == ("bool", [argument])
    policy = jaxdqn.load_policy(tmp_path / "run")
    assert policy(np.zeros((10, 10, 4), bool), legal=np.array([False, False, True])) == 2
    assert explain.main(["dqn", "--env", config.env, "--env-arg", argument]) == 0
    assert "pgx:minatar-breakout" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "navix:Navix-DoorKey-5x5-v0",
        "xminigrid:MiniGrid-DoorKey-5x5",
        "jumanji:Game2048-v1",
        "jumanji:Maze-v0",
        "pgx:2048",
        "octax:brix",
        "craftax:Craftax-Classic-Symbolic-v1",
    ],
)
def test_a_short_run_of_every_suite(name, tmp_path):
    skip_without(name)
    config = tiny(env=name, total_rows=200, eval_every=0, eval_episodes=2)
    assert run(config, out=tmp_path / "run").summary["env_steps"] > 150
    assert run(config, out=tmp_path / "run", resume=True).summary["rows"] == 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["navix:Navix-Empty-8x8-v0", "xminigrid:MiniGrid-Empty-8x8"])
def test_empty_rooms_are_solved(name, seed):
    skip_without(name)
    config = jaxdqn.preset("fast", env=name, n_step=5, gamma=0.95, total_rows=200_000, seed=seed)
    config = dataclasses.replace(config, stop_when="solved", solve_return=0.9)
    summary = run(config).summary
    assert summary["solved"], summary["best_eval_return_mean"]
    # The shortest way takes 11 steps; the reward of xminigrid falls with each.
    shortest = 1 if "navix" in name else 1 - 0.9 * 11 / 256
    assert summary["best_eval_return_mean"] == pytest.approx(shortest, abs=0.02)
    print(f"{name}, seed {seed}: {summary['rows']} rows, {summary['seconds_to_solve']:.1f} s")


@pytest.mark.slow
def test_masks_make_game_2048_better_by_an_interval():
    skip_without("jumanji:Game2048-v1")
    returns = {}
    for masks in ("true", "false"):
        config = jaxdqn.preset(
            "fast", env="jumanji:Game2048-v1", env_args=(f"masks={masks}",), n_step=5,
            total_rows=300_000, eval_every=0,
        )  # fmt: skip
        runs = [run(dataclasses.replace(config, seed=seed)) for seed in range(5)]
        returns[masks] = np.array([each.summary["eval_return_mean"] for each in runs])
    difference = returns["true"] - returns["false"]
    half = 2.776 * difference.std(ddof=1) / np.sqrt(5)  # t of 4 degrees of freedom, 95 %
    print(f"Game2048, with and without masks: {returns}, {difference.mean():.0f} +- {half:.0f}")
    assert difference.mean() - half > 0
