"""Help of ``jaxdqn run``: everyday flags first, all flags by group on request, without JAX."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from jaxdqn.__main__ import main
from jaxdqn.cli import run
from jaxdqn.cli.help import command_help, field_docs, flag_types, help_text
from jaxdqn.config.config import Config
from jaxdqn.config.option import option, rules
from jaxdqn.config.options import Options

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def printed(capsys, monkeypatch):
    """Return a function that runs ``jaxdqn run`` with arguments and returns the help it prints."""

    def run_help(*argv, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            run.main(argv)
        assert ended.value.code == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run_help


def flags_in(text):
    """Return the flags that open an entry of a help, in order."""
    flags = re.findall(r"^  --(?:\[no-\])?([a-z-]+)", text, re.MULTILINE)
    return [flag.replace("-", "_") for flag in flags]


def chapter(text, title):
    """Return the lines of a chapter as one line."""
    lines = text[text.index(f"\n{title}:\n") :].strip().split("\n\n")[0].splitlines()[1:]
    return " ".join(" ".join(lines).split())


def test_the_short_help_shows_the_everyday_flags_first(printed):
    text = printed("--help")
    everyday = [name for name, rule in rules(run.Flags).items() if rule.everyday]
    assert flags_in(text) == [*everyday, "help_all"]
    assert 10 <= len(everyday) <= 15
    assert {"seed", "env", "total_rows", "learning_rate", "out", "resume"} <= set(everyday)
    assert text.index("Everyday flags:") < text.index("Presets:")
    assert len(text.splitlines()) <= 60
    assert text == printed("-h")


def test_the_complete_help_shows_every_flag_once_in_the_chapter_of_its_declaration(printed):
    text = printed("--help-all")
    assert sorted(flags_in(text)) == sorted(
        [*(name.rstrip("_") for name in rules(run.Flags)), "help_all"]
    )
    for name in (*vars(Config()), "out", "explain"):
        assert name in flags_in(text)
    for name, rule in rules(run.Flags).items():
        flag = name.rstrip("_").replace("_", "-")
        assert re.search(rf"--(\[no-\])?{flag}\b", chapter(text, rule.group)), name


def test_the_help_of_a_field_is_its_docstring(printed):
    text = chapter(printed("--help-all"), "Run")
    doc = field_docs(Options)["deterministic"]
    assert doc.startswith("Make runs bitwise reproducible")
    assert doc in text


def test_the_defaults_are_those_of_the_preset(printed):
    assert "--batch-size INT Rows in a minibatch. (default: 128)" in chapter(
        printed("--help"), "Everyday flags"
    )
    assert "--batch-size INT Rows in a minibatch. (default: 64)" in chapter(
        printed("breakout", "--help"), "Everyday flags"
    )


def test_an_option_names_the_choice_that_enables_it(printed):
    text = printed("--help-all")
    assert "Only with --loss categorical." in chapter(text, "Loss")
    assert "Only with --noisy." in chapter(text, "Exploration")
    assert "--algorithm dqn" not in text  # the default enables it


@pytest.mark.parametrize("columns", [60, 80, 120, 300])
def test_no_line_is_longer_than_the_terminal(printed, columns):
    lines = printed("--help-all", columns=columns).splitlines()
    assert max(map(len, lines)) <= min(columns, 110)


def test_flags_of_every_kind_are_shown_by_their_values():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Flags:
        size: int = option(3, group="Sizes", everyday=True)
        """Number of ``things``; replaces other_size."""
        other_size: float | None = option(0.5, group="Sizes")
        """Optional."""
        widths: tuple[int, ...] = option((8, 4), group="Sizes", only_with={"kind": "b"})
        """Widths."""
        kind: Literal["a", "b"] = option("a", group="Kinds")
        fast: bool = option(True, group="Kinds")
        """Fast."""

    def text(complete):
        return help_text(
            Flags(),
            usage="tool [flags]",
            summary="A tool.",
            notes={"Files": "one.txt"},
            complete=complete,
            columns=80,
        )

    assert (
        text(True)
        == """\
usage: tool [flags]

A tool.

Sizes:
  --size INT              Number of things; replaces --other-size. (default: 3)
  --other-size FLOAT|None
                          Optional. (default: 0.5)
  --widths [INT ...]      Widths. Only with --kind b. (default: 8 4)

Kinds:
  --kind {a,b}            (default: a)
  --[no-]fast             Fast. (default: on)

Help:
  -h, --help              Print the everyday flags.
  --help-all              Print all 5 flags, by group.

Files:
  one.txt"""
    )
    assert flags_in(text(False)) == ["size", "help_all"]


COMMANDS = {
    "evaluate": ("usage: jaxdqn evaluate RUN [flags]", ["--episodes INT", "--video FILE"]),
    "plot": ("usage: jaxdqn plot RUN [RUN ...] [flags]", ["--out FILE"]),
    "replay": ("usage: jaxdqn replay RUN [flags]", ["--to FILE", "--learner INT"]),
    "study": ("usage: jaxdqn study [flags]", ["--presets [STR ...]", "--[no-]dry-run"]),
    "compare": ("usage: jaxdqn compare [flags]", ["--only [STR ...]", "--[no-]quick"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_other_commands_have_help_of_the_same_form(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    usage, entries = COMMANDS[command]
    assert text.splitlines()[0] == usage
    assert max(map(len, text.splitlines())) <= 80
    for entry in [*entries, "-h, --help"]:
        assert f"\n  {entry}" in text
    assert "Flags:\n" in text


def test_the_help_of_a_command_shows_defaults_arguments_and_nested_flags():
    @dataclasses.dataclass(frozen=True)
    class Parts:
        """Parts of
        your own."""

        engine: str | None = None
        """The engine."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Flags:
        place: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PLACE")]
        """Where."""
        out: Annotated[str, tyro.conf.arg(metavar="FILE")]
        """File to write."""
        size: int = 3
        """Size."""
        parts: tyro.conf.OmitArgPrefixes[Parts] = dataclasses.field(default_factory=Parts)

    # Defined in a function, so that the annotations are resolved by hand.
    Flags.__annotations__ |= {
        "place": Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PLACE")],
        "parts": tyro.conf.OmitArgPrefixes[Parts],
    }
    text = command_help(Flags, prog="tool", description="One.\n\nTwo.", columns=80)
    assert (
        text
        == """\
usage: tool PLACE [flags]

One.

Two.

Arguments:
  PLACE                   Where. (required)

Flags:
  --out FILE              File to write. (required)
  --size INT              Size. (default: 3)
  -h, --help              Print this help.

Your own parts:
  Parts of your own.
  --engine STR            The engine."""
    )
    assert flag_types(Flags) == {
        "PLACE": str,
        "--out": str,
        "--size": int,
        "--engine": str | None,
    }


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_does_not_wait_for_jax(flag):
    code = (
        "import sys\nfrom experiments.run import main\n"
        f"try:\n    main(['{flag}'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'gymnax', 'matplotlib', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
