"""Options of a preset that do not apply to an environment of the user's own."""

import pytest

from jaxdqn.cli import run
from jaxdqn.errors import known_name


def test_a_preset_has_no_solve_return_on_an_own_environment():
    name, flags = run.read_flags(["cartpole"], own_environment=True)
    assert (name, flags.solve_return, flags.stop_when) == ("cartpole", None, "never")
    _, flags = run.read_flags(["cartpole", "--solve-return", "3"], own_environment=True)
    assert flags.solve_return == 3.0
    _, flags = run.read_flags(["cartpole"])
    assert flags.solve_return == 475.0
    assert flags.stop_when == "held"


@pytest.mark.parametrize("env", [["--env", "Acrobot-v1"], ["--env=Acrobot-v1"]])
def test_an_environment_by_name_and_by_reference_is_an_error(env, capsys):
    assert run.main([*env, "--environment", "mine:make", "--out", "nowhere"]) == 2
    assert "env: must be left out with --environment" in capsys.readouterr().err


def test_an_unknown_name_is_answered_with_near_names_or_with_all():
    assert known_name("preset", "cartpol", ["cartpole", "catch"]) == (
        "a known preset; nearest: cartpole"
    )
    assert known_name("preset", "nope", ["cartpole", "catch"]) == "one of cartpole, catch"
