"""Runs of environments of the suites: short ones of every suite, and those that solve a task."""

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
    assert policy(np.zeros((10, 10, 4), bool)) in range(3)
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
