"""Exceptions and the wording of their messages; imports no other module of the library."""

from __future__ import annotations

import difflib
from typing import Any, NoReturn


class RunFailed(RuntimeError):
    """A run stopped because of an error; the files written before the error are complete."""


class RunStopped(RunFailed):
    """A run stopped on request before it trained; the checkpoints of a resumed run are unchanged.

    Args:
        reason: name of the signal, or ``deadline``.
        during: what was going on, for ``the run ended while ...``.
    """

    def __init__(self, reason: str, during: str = "its programs were compiled") -> None:
        cause = "max_seconds" if reason == "deadline" else reason
        super().__init__(
            f"{cause}: the run ended while {during}, before it trained; "
            "nothing that was saved is lost"
        )
        self.reason = reason


class EndRun(Exception):
    """Raised in a callback to end the run, with all files written.

    Args:
        reason: explanation, recorded as an event of the run.
    """


def suggest(name: str, known: list[str]) -> str:
    """Return the known names nearest to ``name`` as text, or all known names if none is near."""
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known)


def known_name(kind: str, name: str, known: list[str]) -> str:
    """Return the constraint on an unknown name, for ``must be ...``.

    The text is ``a known KIND; nearest: A, B`` if known names are near, else ``one of`` and all
    known names.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"a known {kind}; nearest: {', '.join(near)}" if near else f"one of {', '.join(known)}"


def reject(name: str, value: Any, constraint: str) -> NoReturn:
    """Raise the ``ValueError`` of a field: ``name=value: must be constraint``."""
    raise ValueError(f"{name}={value!r}: must be {constraint}")
