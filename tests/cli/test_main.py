"""``jaxdqn COMMAND``: the list of commands, the version, unknown commands, and each command."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import jaxdqn
from jaxdqn.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_commands_are_those_that_the_documentation_lists():
    assert set(COMMANDS) == {
        "run", "evaluate", "plot", "watch", "report", "explain", "export", "replay", "study",
        "compare",
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command_in_lines_that_fit(flag, capsys):
    assert main([flag]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for name, command in COMMANDS.items():
        assert f"  {name}" in captured.out
        assert command.summary in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80


def test_no_command_prints_the_list_as_an_error(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: jaxdqn COMMAND")


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxdqn {jaxdqn.__version__}\n"


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("rum", "rum: no such command; nearest: run"),
        ("evalute", "evalute: no such command; nearest: evaluate"),
        ("zzz", "zzz: no such command; jaxdqn --help lists them"),
        ("--resume", "--resume: no such command; jaxdqn --help lists them"),
        (
            "cartpole",
            "cartpole: a preset, not a command; to train it: jaxdqn run cartpole",
        ),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest(name, ending, capsys):
    assert main([name]) == 2
    assert capsys.readouterr() == ("", f"error: {ending}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_and_gets_its_arguments_and_exit_code(name, monkeypatch):
    received = []
    module = import_module(COMMANDS[name].module)
    assert callable(module.main)
    monkeypatch.setattr(module, "main", lambda argv: received.append(argv) or 7)
    assert main([name, "--flag", "value"]) == 7
    assert received == [["--flag", "value"]]


@pytest.mark.parametrize("name", ["run", "evaluate", "plot", "replay", "study"])
def test_the_help_of_a_command_names_it_as_the_user_types_it(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code
    assert f"usage: jaxdqn {name}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["zzz"], []])
def test_the_list_of_commands_does_not_wait_for_jax(argv):
    code = (
        f"import sys\nfrom jaxdqn.__main__ import main\nmain({argv!r})\n"
        "heavy = {'jax', 'numpy', 'tyro', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert process.returncode == 0


def test_the_module_runs_as_the_console_script():
    process = subprocess.run(
        [sys.executable, "-m", "jaxdqn", "run", "--sed", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: --sed: no such flag; nearest: --seed")


def test_every_console_script_resolves():
    scripts = PROJECT["project"]["scripts"]
    assert "jaxdqn" in scripts
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))


def test_the_wheel_holds_the_package_alone():
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["jaxdqn"]
