"""Study definitions: the TOML file, and the definitions that come with the project."""

from pathlib import Path

import pytest

from jaxdqn.cli.study import __main__
from jaxdqn.cli.study.definition import read_definition
from jaxdqn.cli.study.results import read_results
from tests.cli.test_cli import assert_one_clear_line
from tests.studies import ROOT, lines

DEFINITIONS = ROOT / "experiments" / "studies"
RECORDED = ROOT / "benchmarks" / "results" / "minatar-gymnax"
SMALL = """
presets = ["dqn", "c51"]
envs = ["CartPole-v1"]
seeds = 2
first_seed = 3
total_rows = 6_000
seeds_at_once = 1

[settings]
gamma = 0.9
hidden_sizes = [32, 32]
double = true
"""


def define(text):
    Path("small.toml").write_text(text)
    return ["--definition", "small.toml", "--out", "study"]


def test_a_definition_gives_the_flags_of_a_study(fake):
    assert __main__.main(define(SMALL)) == 0
    assert fake.seeds == [[3], [4], [3], [4]]
    assert [made.preset for made in fake.made] == ["dqn", "dqn", "c51", "c51"]
    for made in fake.made:
        config = made.config
        assert (config.env, config.total_rows) == ("CartPole-v1", 6_000)
        assert (config.gamma, config.hidden_sizes, config.double) == (0.9, (32, 32), True)


def test_a_flag_replaces_the_value_of_the_definition(fake):
    flags = ["--presets", "iqn", "--seeds", "1", "--set", "gamma=0.8"]
    assert __main__.main([*define(SMALL), *flags]) == 0
    (made,) = fake.made
    assert (made.preset, made.config.gamma, made.config.hidden_sizes) == ("iqn", 0.8, (64,))
    assert [result["seed"] for result in lines()] == [3]


def test_the_report_of_a_definition_gives_complete_commands(fake):
    assert __main__.main(define(SMALL)) == 0
    assert __main__.main([*define(SMALL), "--presets", "iqn", "--report"]) == 0
    command = (
        "`jaxdqn study --presets iqn --envs CartPole-v1 --first-seed 3 --seeds 2 --total-rows 6000 "
        "--seeds-at-once 1 --set double=True gamma=0.9 hidden_sizes=32,32 --out study`"
    )
    assert command in Path("study/report.md").read_text()


BAD = {
    "no such file": (None, "definition='small.toml': must be readable: No such file"),
    "not TOML": ("presets = [", "definition='small.toml': must be a TOML file: "),
    "misspelt key": ('preset = ["dqn"]', "preset must be one of presets"),
    "a name instead of a list": ('presets = "dqn"', "presets='dqn' must be a list of names"),
    "numbers instead of names": ("envs = [1]", "envs=[1] must be a list of names"),
    "a fraction of a seed": ("seeds = 1.5", "seeds=1.5 must be a whole number"),
    "truth instead of a count": ("seeds = true", "seeds=True must be a whole number"),
    "no table": ("settings = 1", "settings=1 must be a table of configuration fields"),
    "misspelt field": ("[settings]\ngama = 0.9", "set='gama=0.9': must name a field; nearest"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_an_invalid_definition_is_one_clear_line(text, message, fake, capsys):
    argv = define(text or "")
    if text is None:
        Path("small.toml").unlink()
    else:
        argv += ["--presets", "dqn"] * ("presets" not in text)
        argv += ["--envs", "CartPole-v1"] * ("envs" not in text)
    assert __main__.main(argv) == 2
    assert_one_clear_line(capsys.readouterr(), [message])
    assert fake.made == []


def test_a_definition_does_not_name_the_directory_of_the_study(fake, capsys):
    assert __main__.main(define(SMALL)[:2]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_definition_of_gymnax_games_finds_the_recorded_results(capsys):
    """The results were recorded under former names, before games had sticky actions."""
    argv = ["--definition", str(DEFINITIONS / "minatar_gymnax.toml"), "--out", str(RECORDED)]
    assert __main__.main([*argv, "--dry-run"]) == 0
    cells = capsys.readouterr().out.splitlines()
    assert len(cells) == 9
    missing = [cell for cell in cells if not cell.endswith("1,000,000 rows: seeds 0-4 done")]
    form = "(full_action_set=False, sticky_actions=0.0) on SpaceInvaders-MinAtar"
    assert [cell.partition(", 1,000")[0] for cell in missing] == [f"dqn {form}", f"fast {form}"]
    assert len(read_results(RECORDED / "results.jsonl").results) == 35


def test_the_ablation_leaves_out_each_part_of_rainbow(capsys):
    definition = str(DEFINITIONS / "rainbow_ablation.toml")
    assert __main__.main(["--definition", definition, "--out", "ablation", "--dry-run"]) == 0
    cells = [line.partition(" on ")[0] for line in capsys.readouterr().out.splitlines()]
    parts = ("double", "dueling", "n-step", "per", "c51", "noisy")
    assert cells == ["rainbow", *(f"rainbow-no-{part}" for part in parts)]


@pytest.mark.parametrize("file", sorted(DEFINITIONS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_definition_is_valid(file):
    assert set(read_definition(str(file))) >= {"presets", "envs", "seeds", "set"}
