"""Flags of the commands: parse them into a dataclass, and report errors in one line."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import tyro

from jaxdqn.cli.aliases import current_flags
from jaxdqn.cli.complaints import plain
from jaxdqn.cli.help import command_help, flag_of, flag_types, requested_help
from jaxdqn.errors import RunFailed, RunStopped, suggest
from jaxdqn.monitoring.output import discard_output, prepare_standard_streams, print_error
from jaxdqn.run.interrupt import is_compiling

USAGE_ERROR = 2
"""Exit code of a command whose arguments are invalid."""

FAILED = 1
"""Exit code of a run that failed."""

_INTERRUPTED = 130

_START_THRESHOLDS = (200_000, 50, 100)

_thresholds: list[tuple[int, int, int]] = []
"""Thresholds of the garbage collector before ``_collect_garbage_less_often``"""


class UsageError(Exception):
    """The arguments of a command are invalid; the message is one line."""


def terminal_columns() -> int:
    """Return the width of the terminal in characters, 80 if there is none."""
    return shutil.get_terminal_size().columns


def parse(flags: type[Any], argv: Sequence[str], **options: Any) -> Any:
    """Parse the command line into an instance of the dataclass ``flags``.

    ``--help`` prints the help and exits. ``options`` are passed to ``tyro.cli``: among them
    ``prog``, the name of the command, and ``description``.

    Raises:
        UsageError: if a flag or a value is invalid.
        ValueError: if a flag is given under its former and its current name.
    """
    names = [field.name for field in fields(flags)]
    if requested_help(argv) is not None:
        prog, description = options.get("prog", ""), options.get("description", "")
        columns = terminal_columns()
        print(command_help(flags, prog=prog, description=description, columns=columns))
        raise SystemExit(0)
    argv = current_flags(argv, names)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            parsed, unknown = tyro.cli(flags, args=argv, return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(plain(_complaint(output.getvalue()), flag_types(flags))) from None
    if unknown:
        raise UsageError(_unknown(unknown[0], names))
    return parsed


def run_command(
    command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Run a command and return its exit code; print an error as one line on stderr."""
    prepare_standard_streams()
    _collect_garbage_less_often()
    code = _code_of(command, argv)
    if is_compiling():
        # A run was stopped while XLA compiled; a normal exit would wait for it.
        os._exit(code)
    return code


def _collect_garbage_less_often() -> None:
    """Make Python's garbage collector run less often, and not at exit.

    Imports and tracing create millions of objects, few of them in cycles. With the default
    thresholds the collector takes a tenth of the start-up time, and half a second at exit. A
    training run restores the thresholds by ``collect_garbage_as_before``.
    """
    if gc.get_threshold() != _START_THRESHOLDS:
        _thresholds.append(gc.get_threshold())
    gc.set_threshold(*_START_THRESHOLDS)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def collect_garbage_as_before() -> None:
    """Restore the garbage collector's thresholds, and exclude existing objects from collection."""
    if _thresholds:
        gc.freeze()
        gc.set_threshold(*_thresholds.pop())


def _code_of(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None) -> int:
    try:
        arguments = sys.argv[1:] if argv is None else argv
        _check_utf8(arguments)
        code = command(arguments) or 0
        sys.stdout.flush()
        return code
    except (UsageError, ValueError) as error:
        print_error(str(error))
        return USAGE_ERROR
    except RunStopped as stopped:
        print_error(str(stopped))
        return _stopped_code(stopped.reason)
    except RunFailed as error:
        print_error(str(error))
        return FAILED
    except OSError as error:
        if not _is_of_output(error):
            raise
        if not isinstance(error, BrokenPipeError):  # a reader closes the pipe on purpose
            print_error(f"standard output: {error.strerror}")
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    finally:
        _flush_output()


def _check_utf8(argv: Sequence[str]) -> None:
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word!r}: must be text in UTF-8") from None


def _stopped_code(reason: str) -> int:
    """Return the exit code of a run that was stopped before training: 128 + signal, as in sh."""
    return FAILED if reason == "deadline" else 128 + signal.Signals[reason]


def _is_of_output(error: OSError) -> bool:
    """Return whether an error comes from writing standard output."""
    if isinstance(error, BrokenPipeError):
        return True
    try:
        sys.stdout.flush()
    except OSError:
        return error.filename is None
    return False


def _flush_output() -> None:
    """Flush standard output. Discard it on failure, or the interpreter would fail again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard_output()


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
