"""Flags for an environment, a network and an optimiser of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxdqn.cli.flags import UsageError
from jaxdqn.storage.parts import NAMES, check_reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartFlags:
    """Flags of a command that reads a run with its own environment and network."""

    environment: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own environment, as MODULE:FUNCTION or FILE.py:FUNCTION, where a function without
    arguments returns an Environment. Not needed if the run was started with such a reference: the
    run directory remembers it."""
    network: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own network, in the same form; the function returns a flax module or a Network."""

    def references(self) -> dict[str, str | None]:
        """Return the references by part.

        Raises:
            ValueError: if one is malformed.
        """
        references = {name: getattr(self, name, None) for name in NAMES if hasattr(self, name)}
        for name, reference in references.items():
            if reference is not None:
                check_reference(name, reference)
        return references


def take_references(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split references to own parts off the arguments of ``jaxdqn run``.

    ``--network`` and ``--optimizer`` are also options of the configuration, with the names of the
    library's own; a value with a colon is a reference.

    Returns:
        The other arguments, and the references by part.

    Raises:
        ValueError, UsageError: if a reference is malformed, or a part is given twice.
    """
    remaining: list[str] = []
    references: dict[str, str] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if flag == name or name not in NAMES:
            remaining.append(argument)
            continue
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                remaining.append(argument)  # the parser reports the missing value
                continue
            value = arguments.pop(0)
        if name != "environment" and ":" not in value:
            remaining += [flag, value]
            continue
        if name in references:
            raise UsageError(f"{flag}: must be given once")
        check_reference(name, value)
        references[name] = value
    return remaining, references


def file_name(reference: str) -> str:
    """Return a name for files of a run whose environment is a reference."""
    target = reference.rpartition(":")[0]
    return Path(target).stem if target.endswith(".py") else target.rpartition(".")[2]
