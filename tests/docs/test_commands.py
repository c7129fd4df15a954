"""Every command of the pages parses, and its configuration is valid."""

import importlib
import importlib.util
import json
import shlex
import sys

import pytest

from jaxdqn.__main__ import COMMANDS, main
from jaxdqn.cli import run
from jaxdqn.cli.flags import parse
from jaxdqn.cli.parts import take_env_args
from jaxdqn.cli.study import __main__ as study
from jaxdqn.config import to_dict
from jaxdqn.config.presets import preset
from tests.docs.pages import PAGES, ROOT, blocks, commands, name_of, shell_texts
from tests.docs.small_command import shrunk

MODULES = ("benchmarks.", "experiments.", "jaxdqn")
"""Beginnings of the modules whose ``python -m`` commands are checked."""


TEXTS = {
    f"{name_of(page)} {index}": text
    for page in PAGES
    for index, text in enumerate(shell_texts(page))
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Make a directory with the user's module, and every run that the pages name, started."""
    monkeypatch.setenv("NPROC", "1")  # restores what the commands set
    config = json.dumps(to_dict(preset("cartpole")))
    for name in ("a", "b", "again", "first", "second", "corridor", "two", "long", "RUN"):
        for directory in (tmp_path / "runs" / name, tmp_path / name):
            directory.mkdir(parents=True)
            (directory / "config.json").write_text(config)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (corridor,) = blocks(ROOT / "docs" / "guide.md", "python")
    (tmp_path / "corridor.py").write_text(corridor)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("corridor", None)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_command_parses_and_its_configuration_is_valid(text, runs):
    for program, *arguments in commands(text, runs / "shell"):
        check(program, arguments)
        if program == "jaxdqn" and arguments[0] in COMMANDS:
            check(program, shrunk(arguments))  # as test_commands_run.py runs it


def check(program, arguments):
    """Parse one command, and validate what it would run."""
    if program == "python":
        assert arguments[0] in ("-m", "-c"), arguments
        if arguments[0] == "-c" or not arguments[1].startswith(MODULES):
            return
        module = importlib.import_module(_module(arguments[1]))
        rest = arguments[2:]
    elif arguments[0] in ("--help", "--version"):
        assert main(arguments) == 0
        return
    else:
        module = importlib.import_module(COMMANDS[arguments[0]][0])
        rest = arguments[1:]
    if "--help" in rest or "--help-all" in rest:
        with pytest.raises(SystemExit) as ended:
            module.main(rest)
        assert not ended.value.code
    elif module.__name__ in ("jaxdqn.cli.run", "jaxdqn.cli.explain"):
        run.config_from(run.read_flags(take_env_args(rest))[1])
    elif module.__name__ == study.__name__:
        read_flags = getattr(study, "read_flags", lambda rest: parse(study.Flags, rest))
        assert study.read_study(read_flags(rest)).cells or "--report" in rest
    elif module.__name__ == "jaxdqn.cli.compare":
        parse(importlib.import_module("benchmarks.techniques.__main__").Flags, rest)
    else:
        parse(module.Flags, take_env_args(rest))


def _module(name):
    """Return the module that ``python -m name`` runs, or the one that an entry calls."""
    if name.startswith("experiments.") and not name.startswith("experiments.projects."):
        command = {"sweep": "study"}.get(name.partition(".")[2], name.partition(".")[2])
        return COMMANDS[command][0]
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    return f"{name}.__main__" if spec.submodule_search_locations is not None else name


def test_loops_braces_and_continued_lines_are_expanded(tmp_path):
    text = "for i in 0 1; do\n  jaxdqn run a-{b,c} \\\n    --id $i &  # why\ndone; wait"
    found = commands(text, tmp_path / "shell")
    assert sorted(shlex.join(command) for command in found) == [
        "jaxdqn run a-b a-c --id 0",
        "jaxdqn run a-b a-c --id 1",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "cartpole", "--no-such-flag"],
        ["run", "cartpole", "--num-envs", "0"],
        ["study", "--presets", "no-such", "--envs", "CartPole-v1", "--out", "x"],
        ["plot", "runs/a", "--out", "x.png", "--no-such-flag"],
    ],
)
def test_a_wrong_command_is_found(arguments, runs):
    with pytest.raises(Exception, match=r"no such|no-such|num_envs|nearest|must be"):
        check("jaxdqn", arguments)
