"""Flags of the commands: parse them into a dataclass, and report errors in one line."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import tyro

from jaxdqn.cli.aliases import current_flags
from jaxdqn.cli.help import flag_of
from jaxdqn.errors import RunFailed, suggest

USAGE_ERROR = 2
"""Exit code of a command whose arguments are invalid."""

FAILED = 1
"""Exit code of a run that failed."""

_INTERRUPTED = 130


class UsageError(Exception):
    """The arguments of a command are invalid; the message is one line."""


def terminal_columns() -> int:
    """Return the width of the terminal, 80 if there is none."""
    return shutil.get_terminal_size().columns


def parse(flags: type[Any], argv: Sequence[str], **options: Any) -> Any:
    """Parse the command line into an instance of the dataclass ``flags``.

    ``--help`` prints the help and exits. ``options`` are those of ``tyro.cli``.

    Raises:
        UsageError: if a flag or a value is invalid.
        ValueError: if a flag is given under its former and its current name.
    """
    names = [field.name for field in fields(flags)]
    argv = current_flags(argv, names)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            parsed, unknown = tyro.cli(flags, args=argv, return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(_complaint(output.getvalue())) from None
    if unknown:
        raise UsageError(_unknown(unknown[0], names))
    return parsed


def run_command(
    command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Run a command and return its exit code; print an error as one line on stderr."""
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except (UsageError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except RunFailed as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader of the output has closed it; the interpreter would fail to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _complaint(text: str) -> str:
    """Return the error message from the output of tyro: a box with a title, a message and advice.

    Rules separate the three. They consist of box characters, or of hyphens if the encoding lacks
    those. The title may be inside the upper rule.
    """
    parts: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in text.splitlines()):
        if line.startswith(("╭", "╰")) or (len(line) > 3 and not line.strip("─-")):
            parts.append([])
        elif line:
            parts[-1].append(line)
    return " ".join(parts[1] if len(parts) > 1 else parts[0])


def _unknown(token: str, names: list[str]) -> str:
    if not token.startswith("-"):
        return f"{token!r}: unexpected or out of place; see --help"
    flags = [flag_of(name)[2:] for name in names]
    wanted = token.lstrip("-").partition("=")[0].replace("_", "-")
    near = suggest(wanted, flags).split(", ")
    if len(near) == len(flags):
        return f"{token}: no such flag; see --help"
    return f"{token}: no such flag; nearest: {', '.join(f'--{name}' for name in near)}"
