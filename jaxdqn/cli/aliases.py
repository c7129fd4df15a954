"""Former names of flags and settings, accepted for one release. Imports no JAX."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from jaxdqn.config.former_names import FORMER_NAMES
from jaxdqn.config.options import RULES


def current_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """Replace former flags in the arguments by current ones, and report each of them on stderr.

    Args:
        argv: arguments of a command.
        names: names of the fields that are flags of the command.

    Raises:
        ValueError: if a flag is given under both names.
    """
    argv = _with_values(argv)
    flags = [token if token.startswith("--") else "" for token in argv]
    former = [name for name, current in FORMER_NAMES.items() if current in names]
    return _renamed(argv, flags, former)


def _with_values(argv: Sequence[str]) -> list[str]:
    """Append the current value to each former flag without a value.

    ``--former`` gets the current value for True, and ``--no-former`` that for False.
    """
    values = {}
    for former, current in FORMER_NAMES.items():
        present = RULES[current].former_values
        for prefix, value in (("", True), ("no_", False)):
            if value in present:
                values[prefix + former] = f"--{former.replace('_', '-')}={present[value]}"
    return [
        values.get(token[2:].replace("-", "_"), token) if token.startswith("--") else token
        for token in argv
    ]


def current_settings(texts: Sequence[str]) -> tuple[str, ...]:
    """Replace former names in the settings NAME=VALUE of ``--set``, and report them on stderr.

    Raises:
        ValueError: if a setting is given under both names.
    """
    return tuple(_renamed(texts, texts, FORMER_NAMES))


def _renamed(
    tokens: Sequence[str], candidates: Sequence[str], former: Collection[str]
) -> list[str]:
    """Replace former names in tokens, and report them on stderr.

    Each token has a candidate: the token itself, or "" if the token cannot contain a name.
    """
    given = {_field_of(candidate): _head_of(candidate) for candidate in candidates}
    renamed = []
    for token, candidate in zip(tokens, candidates, strict=True):
        name = _field_of(candidate)
        if name not in former:
            renamed.append(token)
            continue
        head, current = _head_of(token), FORMER_NAMES[name]
        if current in given:
            raise ValueError(
                f"{head}: must be omitted; {given[current]} is its new name and is given too"
            )
        new = f"--{current.replace('_', '-')}" if head.startswith("--") else current
        value = token[len(head) :] if RULES[current].former_values else ""
        print(f"{head} is now {new}{value}", file=sys.stderr)
        renamed.append(new + token[len(head) :])
    return renamed


def _head_of(token: str) -> str:
    """Return the part of ``--some-field=value`` before the equals sign."""
    return token.partition("=")[0]


def _field_of(token: str) -> str:
    """Return the name of the field in ``--some-field[=value]`` or ``some_field=value``."""
    return _head_of(token).strip().lstrip("-").replace("-", "_")
