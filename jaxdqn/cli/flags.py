"""What the commands share: flags from a dataclass, and one line for what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import tyro

from jaxdqn.errors import RunFailed, suggest

REFUSED = 2
"""Exit code of a command whose input is refused."""

FAILED = 1
"""Exit code of a run that could not go on."""


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line."""


def parse(flags: type[Any], argv: Sequence[str], **options: Any) -> Any:
    """Read an instance of the dataclass ``flags`` from the command line.

    ``--help`` prints the help and exits. ``options`` are those of ``tyro.cli``.

    Raises:
        UsageError: if a flag or a value is not understood.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(flags, args=argv, return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(_complaint(complaint.getvalue())) from None
    if unknown:
        raise UsageError(_unknown(unknown[0], [field.name for field in fields(flags)]))
    return parsed


def run_command(
    command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Run a command and return its exit code; what it refuses is one line on stderr."""
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except (UsageError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except RunFailed as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # Who read the output has gone; nor can the interpreter flush it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _complaint(text: str) -> str:
    """Return the complaint in what tyro prints: a box of a title, the complaint, and advice.

    The parts are apart by rules, drawn in box characters or, where the output
    cannot show those, in hyphens; the title may stand in the upper rule.
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
        return f"{token!r}: an argument too many, or out of place; see --help"
    flags = [name.replace("_", "-") for name in names]
    wanted = token.lstrip("-").partition("=")[0].replace("_", "-")
    near = suggest(wanted, flags).split(", ")
    if len(near) == len(flags):
        return f"{token}: no such flag; see --help"
    return f"{token}: no such flag; nearest: {', '.join(f'--{name}' for name in near)}"
