"""Studies of custom environments, networks and optimisers."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from jaxdqn.cli.study import __main__
from jaxdqn.cli.study.cells import key_of, key_of_result, make_cell
from jaxdqn.config.config import to_dict
from jaxdqn.storage.parts import read_parts
from tests.cli.test_cli import assert_one_clear_line
from tests.own_parts import SOURCE
from tests.studies import SMALL, lines
from tests.toys import quick_runs

PARTS = {"environment": "mine:corridor", "network": "mine.py:Linear", "optimizer": "mine:sgd"}


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """Write the user's module into the working directory, and forget it afterwards."""
    Path("mine.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    for name in [name for name in sys.modules if name.partition("_")[0] == "mine"]:
        del sys.modules[name]


def study(*more, presets=("dqn",), seeds=2, **parts):
    flags = [word for name, value in parts.items() for word in (f"--{name}", value)]
    argv = ["--presets", *presets, "--seeds", str(seeds), "--out", "study", *flags, *more]
    return __main__.main(argv)


def test_every_run_has_the_parts_and_every_result_names_them(fake):
    assert study(presets=("dqn", "double"), **PARTS) == 0
    assert [made.preset for made in fake.made] == ["dqn", "double"]
    for made in fake.made:
        assert made.parts == PARTS
        assert made.config.env == "corridor"
        # Those of CartPole.
        assert (made.config.solve_return, made.config.stop_when) == (None, "never")
    for result in lines():
        assert result["parts"] == PARTS
        assert (result["env"], result["max_episode_steps"]) == ("corridor", 20)
        assert result["config_hash"] == key_of_result(result)
    text = Path("study/report.md").read_text()
    assert "| corridor (episodes of at most 20 steps) |" in text
    assert "Common settings: `network=mine.py:Linear`, `optimizer=mine:sgd`." in text
    # Everything is recorded.
    assert study(presets=("dqn", "double"), **PARTS) == 0
    assert len(fake.made) == 2


def test_a_study_without_parts_has_the_results_and_identities_of_earlier_versions(fake):
    assert study(envs="CartPole-v1") == 0
    assert fake.made[0].parts == {}
    assert all("parts" not in result for result in lines())
    cell = make_cell("dqn", "CartPole-v1", range(2), {}, None)
    assert cell.key == key_of("dqn", to_dict(cell.config)) == lines()[0]["config_hash"]


@pytest.mark.parametrize(
    ("name", "other"),
    [("environment", "mine:Nested.corridor"), ("network", "mine:Linear"), ("optimizer", None)],
)
def test_a_study_resumed_with_another_reference_trains_another_cell(name, other, fake, capsys):
    fake.before = lambda config, loggers: "SIGTERM"
    assert study(**PARTS) == 0
    fake.before = lambda config, loggers: None
    changed = {part: reference for part, reference in {**PARTS, name: other}.items() if reference}
    assert study("--dry-run", **changed) == 0
    assert "seeds 0-1 to run" in capsys.readouterr().out
    assert study(**changed) == 0
    assert study("--dry-run", **PARTS) == 0
    assert "seeds 0-1 started" in capsys.readouterr().out
    assert study(**PARTS) == 0
    first, second, third = (made.out for made in fake.made)
    assert first == third != second
    assert [result.get("parts") for result in lines()] == [changed, changed, PARTS, PARTS]


def test_labels_name_the_parts_that_differ(fake):
    assert study(environment=PARTS["environment"]) == 0
    assert study(environment=PARTS["environment"], network="mine:Linear") == 0
    assert study(environment="mine:Nested.corridor") == 0
    text = Path("study/report.md").read_text()
    for label in ("dqn (total_rows=600000, environment=mine:corridor)",
                  "dqn (total_rows=600000, environment=mine:Nested.corridor)",
                  "dqn (network=mine:Linear)"):  # fmt: skip
        assert f"| {label} |" in text


def test_the_report_gives_commands_with_the_parts_of_missing_cells(fake, capsys):
    parts = {name: PARTS[name] for name in ("environment", "network")}
    assert study(seeds=1, **parts) == 0
    assert study("--envs", "CartPole-v1", presets=("double",), seeds=1) == 0
    assert study("--report", presets=("dqn", "double"), seeds=2, **parts) == 0
    commands = re.findall(r"not run: `(.*?)`", Path("study/report.md").read_text())
    for command in set(commands):
        assert __main__.main(shlex.split(command)[2:]) == 0
    made = {(run.preset, run.config.env, run.parts.get("network")) for run in fake.made[2:]}
    assert ("dqn", "corridor", PARTS["network"]) in made
    assert ("double", "corridor", PARTS["network"]) in made
    assert ("dqn", "CartPole-v1", PARTS["network"]) in made
    assert all(run.parts.get("environment") for run in fake.made if run.config.env == "corridor")
    capsys.readouterr()
    assert study("--dry-run", presets=("dqn", "double"), seeds=2, **parts) == 0
    assert "to run" not in capsys.readouterr().out


def test_a_definition_names_parts_and_a_flag_replaces_them(fake):
    text = 'presets = ["dqn"]\nenvironment = "mine:corridor"\nnetwork = "mine:Linear"\nseeds = 1\n'
    Path("own.toml").write_text(text)
    definition = ["--definition", "own.toml", "--out", "study"]
    assert __main__.main(definition) == 0
    assert __main__.main([*definition, "--network", "mine.py:Linear"]) == 0
    assert [made.parts["network"] for made in fake.made] == ["mine:Linear", "mine.py:Linear"]
    assert {made.config.env for made in fake.made} == {"corridor"}


BAD = {
    "two sources of environments": (
        ["--environment", "mine:corridor", "--envs", "CartPole-v1"],
        ["environment='mine:corridor': must come without --envs"],
    ),
    "the name of an environment": (
        ["--environment", "CartPole-v1"],
        ["environment='CartPole-v1': must be MODULE:FUNCTION or FILE.py:FUNCTION"],
    ),
    "the name of a network": (
        ["--envs", "CartPole-v1", "--network", "nature"],
        ["network='nature': must be MODULE:FUNCTION or FILE.py:FUNCTION"],
    ),
    "no such module": (
        ["--environment", "nowhere:make"],
        ["environment='nowhere:make': must name a module"],
    ),
    "no optimiser": (
        ["--envs", "CartPole-v1", "--optimizer", "mine:transformation"],
        ["optimizer='mine:transformation': must return an optimizer"],
    ),
    "layers of your own network": (
        ["--envs", "CartPole-v1", "--network", "mine:Linear", "--set", "hidden_sizes=64"],
        ["network='mine:Linear': must come without --set hidden_sizes"],
    ),
    "two optimisers": (
        ["--envs", "CartPole-v1", "--optimizer", "mine:sgd", "--set", "optimizer=radam"],
        ["optimizer='mine:sgd': must come without --set optimizer"],
    ),
}


@pytest.mark.parametrize(("flags", "parts"), BAD.values(), ids=BAD)
def test_an_invalid_part_is_one_clear_line_and_writes_nothing(flags, parts, fake, capsys):
    assert study(*flags) == 2
    assert_one_clear_line(capsys.readouterr(), parts)
    assert not Path("study").exists()


@pytest.mark.slow
def test_a_study_of_custom_parts_trains_and_its_runs_remember_them():
    settings = [text for text in SMALL if not text.startswith("hidden_sizes")]
    with quick_runs():
        assert study("--total-rows", "600", "--set", *settings, **PARTS) == 0
    results = lines()
    assert [(result["env"], result["seed"]) for result in results] == [
        ("corridor", 0), ("corridor", 1),
    ]  # fmt: skip
    run = Path("study/cells") / results[0]["run"]
    record = read_parts(run)
    assert {name: record[name]["reference"] for name in PARTS} == PARTS
    assert json.loads((run / "config.json").read_text())["env"] == "corridor"
