"""Former names of flags, accepted for one release. Imports no JAX."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from jaxdqn.config.former_names import FORMER_NAMES


def current_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the arguments with former flags replaced by current ones, each reported on stderr.

    Args:
        argv: arguments of a command.
        names: fields that the command has as flags.

    Raises:
        ValueError: if a flag is given under both names.
    """
    given = [_field_of(token) for token in argv]
    renamed = []
    for token, name in zip(argv, given, strict=True):
        current = FORMER_NAMES.get(name or "")
        if current is None or current not in names:
            renamed.append(token)
            continue
        old, new = (f"--{each.replace('_', '-')}" for each in (name or "", current))
        if current in given:
            raise ValueError(f"{old}: must be left out, it is now {new}, which is given too")
        print(f"{old} is now {new}", file=sys.stderr)
        _, equals, value = token.partition("=")
        renamed.append(f"{new}{equals}{value}")
    return renamed


def _field_of(token: str) -> str | None:
    """Return the field that a token ``--some-field`` or ``--some-field=value`` names."""
    if not token.startswith("--"):
        return None
    return token[2:].partition("=")[0].replace("-", "_")
