"""Former names of flags are accepted for one release, and reported on stderr."""

import json
from pathlib import Path

import pytest

from jaxdqn.cli import run
from jaxdqn.cli.aliases import current_flags, current_settings
from jaxdqn.cli.flags import UsageError
from jaxdqn.cli.parts import take_env_args
from jaxdqn.cli.study import __main__ as study

NAMES = [
    ("--total-steps", "--total-rows"),
    ("--warmup-steps", "--warmup-rows"),
    ("--epsilon-decay-steps", "--epsilon-decay-rows"),
]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def field_of(flag):
    return flag[2:].replace("-", "_")


@pytest.mark.parametrize(("former", "current"), NAMES)
@pytest.mark.parametrize("form", ["{} 40000", "{}=40000"])
def test_a_former_flag_is_accepted_and_names_the_current_one(former, current, form, capsys):
    _, flags = run.read_flags(form.format(former).split())
    assert getattr(run.config_from(flags), field_of(current)) == 40_000
    assert capsys.readouterr().err == f"{former} is now {current}\n"


def test_a_former_flag_may_be_spelt_with_underscores(capsys):
    _, flags = run.read_flags(["--total_steps", "40000"])
    assert flags.total_rows == 40_000
    assert capsys.readouterr().err == "--total_steps is now --total-rows\n"


@pytest.mark.parametrize(("former", "current"), NAMES)
def test_both_flags_at_once_are_rejected_by_name(former, current, capsys):
    assert run.main([former, "40000", f"{current}=50000"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {former}: must be omitted; {current} is its new name and is given too\n"
    )


def test_a_former_flag_is_reported_once_by_a_command_that_parses_twice(capsys):
    argv = ["rainbow", "--env", "Breakout-MinAtar", "--total-steps", "0", "--mesh", "data=1"]
    assert run.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "--total-steps is now --total-rows",
        "error: total_rows=0: must be at least 1",
    ]


def test_only_flags_are_renamed_and_only_those_of_the_command():
    argv = ["total_steps", "--out", "total-steps", "--warmup-steps", "64"]
    assert current_flags(argv, ["total_rows", "out"]) == argv


def test_a_stored_configuration_under_former_names_gives_the_defaults():
    Path("old.json").write_text(json.dumps({"total_steps": 40_000, "warmup_steps": 2_048}))
    _, flags = run.read_flags(["--from", "old.json"])
    assert (flags.total_rows, flags.warmup_rows) == (40_000, 2_048)


def test_the_study_accepts_the_former_flag(capsys):
    argv = ["--out", "s", "--presets", "dqn", "--envs", "CartPole-v1", "--dry-run"]
    assert study.main([*argv, "--total-steps", "40000"]) == 0
    captured = capsys.readouterr()
    assert "40,000 rows" in captured.out
    assert captured.err == "--total-steps is now --total-rows\n"


def test_settings_of_a_study_accept_former_names(capsys):
    assert current_settings(("warmup_steps=64", "gamma=0.9")) == ("warmup_rows=64", "gamma=0.9")
    assert current_settings(("--epsilon-decay-steps=9",)) == ("--epsilon-decay-rows=9",)
    assert capsys.readouterr().err == (
        "warmup_steps is now warmup_rows\n--epsilon-decay-steps is now --epsilon-decay-rows\n"
    )
    argv = ["--out", "s", "--presets", "dqn", "--envs", "CartPole-v1", "--dry-run"]
    assert study.main([*argv, "--set", "warmup_steps=2048"]) == 0
    captured = capsys.readouterr()
    assert "warmup_rows=2048" in captured.out
    assert captured.err == "warmup_steps is now warmup_rows\n"


def test_settings_of_a_study_under_both_names_are_rejected_by_name(capsys):
    argv = ["--out", "s", "--presets", "dqn", "--envs", "CartPole-v1"]
    assert study.main([*argv, "--set", "warmup_steps=2048", "warmup_rows=4096"]) == 2
    assert capsys.readouterr().err == (
        "error: warmup_steps: must be omitted; warmup_rows is its new name and is given too\n"
    )


def test_rows_that_a_study_sets_by_a_flag_are_rejected_in_its_settings(capsys):
    argv = ["--out", "s", "--presets", "dqn", "--envs", "CartPole-v1"]
    assert study.main([*argv, "--set", "total_steps=40000"]) == 2
    assert "must be given as --total-rows" in capsys.readouterr().err


def test_a_former_flag_gets_its_present_value(capsys):
    for flag, value in (("--stop-when-solved", "solved"), ("--no-stop-when-solved", "never")):
        _, flags = run.read_flags(
            current_flags(["cartpole", flag, "--seed", "3"], ["seed", "stop_when"])
        )
        assert (flags.stop_when, flags.seed) == (value, 3)
        assert f"--stop-when-solved is now --stop-when={value}" in capsys.readouterr().err


def test_arguments_of_the_environment_are_gathered_from_repeated_flags():
    argv = ["--env-arg", "size=5", "--seed", "3", "--env-arg=stochastic=true"]
    assert take_env_args(argv) == ["--seed", "3", "--env-args", "size=5", "stochastic=true"]
    assert take_env_args(["--seed", "3"]) == ["--seed", "3"]
    name, flags = run.read_flags(["cartpole", *argv])
    assert (name, flags.env_args, flags.seed) == ("cartpole", ("size=5", "stochastic=true"), 3)
    for wrong in (
        ["--env-arg"],
        ["--env-arg", "--seed"],
        ["--env-arg", "a=1", "--env-args", "b=2"],
    ):
        with pytest.raises(UsageError, match="--env-arg: must"):
            take_env_args(wrong)
