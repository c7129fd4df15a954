"""Entries of the commands: ``python -m experiments.NAME`` is ``jaxdqn NAME``."""

import pytest

from jaxdqn.__main__ import COMMANDS
from tests.cli.test_cli import python
from tests.studies import ROOT


def test_every_command_has_an_entry():
    entries = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    assert set(COMMANDS) <= entries


@pytest.mark.parametrize("name", [*COMMANDS, "sweep"])
def test_an_entry_prints_the_help_of_its_command(name):
    process = python("-m", f"experiments.{name}", "--help")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    commands = {"sweep": ["study"], "explain": ["explain", "run"]}.get(name, [name])
    assert any(f"jaxdqn {command} " in out for command in commands)
    assert err == ("experiments.sweep: renamed; use jaxdqn study\n" if name == "sweep" else "")
