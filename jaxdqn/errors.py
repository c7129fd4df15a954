"""Errors that the library raises, and their wording. Imports nothing of the library."""

from __future__ import annotations

import difflib
from typing import Any


class RunFailed(RuntimeError):
    """A run cannot go on; what it wrote until then is whole."""


def suggest(name: str, known: list[str]) -> str:
    """Return the known names nearest to ``name``, or all of them, as text."""
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known)


def refuse(name: str, value: Any, constraint: str) -> None:
    """Raise the ``ValueError`` of a field whose value is not what it must be."""
    raise ValueError(f"{name}={value!r}: must be {constraint}")
