"""Text for standard output and standard error, which may be closed, full or ASCII only."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import IO

ENCODING_ERRORS = "jaxdqn.substitute"
"""Name of the error handler that replaces characters missing in an encoding."""

_STRICT = ("strict", "surrogateescape")
_SUBSTITUTES = {"±": "+-", "…": "..."}


def printable(text: str, stream: IO[str]) -> str:
    """Replace characters that the encoding of a stream cannot represent."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, ENCODING_ERRORS).decode(encoding)


def say(text: str) -> None:
    """Print text on standard output; after a failed write, discard all further output."""
    stream = sys.stdout
    try:
        print(printable(text, stream), file=stream, flush=True)
    except (OSError, ValueError):  # ValueError: the stream is closed
        discard_output()


def warn(text: str) -> None:
    """Print a warning as one line on standard error, if it is writable."""
    _report("warning", text)


def print_error(text: str) -> None:
    """Print an error as one line on standard error, if it is writable."""
    _report("error", text)


def _report(kind: str, text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
        print(printable(f"{kind}: {' '.join(text.split())}", sys.stderr), file=sys.stderr)
        sys.stderr.flush()


def discard_output() -> None:
    """Redirect standard output to the null device, because the interpreter flushes it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def prepare_standard_streams() -> None:
    """Reopen closed standard streams, and make the others accept every character.

    Otherwise the next file that the process opens would get the file descriptor of the closed
    stream, and libraries would print into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in _STRICT:
            stream.reconfigure(errors=ENCODING_ERRORS)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(character, "?") for character in lacking), error.end


codecs.register_error(ENCODING_ERRORS, _substitute)
