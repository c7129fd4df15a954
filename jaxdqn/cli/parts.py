"""Flags for custom parts: environment, network, optimiser and others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxdqn.cli.flags import UsageError
from jaxdqn.storage.parts import NAMES, check_reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyParts:
    """Needed only if a Python program passed the part as an object, or if the reference has since
    changed. Otherwise the run directory records the reference."""

    environment: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own environment, as MODULE:FUNCTION or FILE.py:FUNCTION; the function takes no
    arguments and returns an Environment."""
    network: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own network; the function returns a flax module or a Network."""
    agent: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own agent: a function (config, spec, collectives) -> Agent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunParts(PolicyParts):
    __doc__ = PolicyParts.__doc__

    optimizer: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own optimizer; the function returns a function hyper ->
    optax.GradientTransformation."""
    replay: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own replay: a function config -> Replay."""
    explore: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own exploration: a function (key, q, exploration) -> (actions, behaviour_prob)."""
    loss: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own loss: a function (params, target_params, key, batch, hyper) -> (losses,
    info)."""
    learning: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """The run's own learning: a function (config, agent, collectives) -> Learning."""


def references(parts: PolicyParts) -> dict[str, str | None]:
    """Return the references by part.

    Raises:
        ValueError: if a reference is malformed.
    """
    by_name: dict[str, str | None] = dataclasses.asdict(parts)
    for name, reference in by_name.items():
        if reference is not None:
            check_reference(name, reference)
    return by_name


_OPTIONS = ("network", "optimizer", "replay", "loss")
"""Parts that are also options of the configuration."""


def take_references(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate references to custom parts from the arguments of ``jaxdqn run``.

    ``--network``, ``--optimizer``, ``--replay`` and ``--loss`` are also options of the
    configuration, with the names of built-in parts as values. A value with a colon is a reference.

    Returns:
        The other arguments, and the references by part.

    Raises:
        ValueError, UsageError: if a reference is malformed, or a part is given twice.
    """
    remaining: list[str] = []
    found: dict[str, str] = {}
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
        if name in _OPTIONS and ":" not in value:
            remaining += [flag, value]
            continue
        if name in found:
            raise UsageError(f"{flag}: must be given once")
        check_reference(name, value)
        found[name] = value
    return remaining, found


def take_env_args(argv: Sequence[str]) -> list[str]:
    """Return the arguments with all ``--env-arg NAME=VALUE`` collected into one ``--env-args``.

    Raises:
        UsageError: if an ``--env-arg`` has no value, or both flags are given.
    """
    remaining: list[str] = []
    found: list[str] = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        flag, equals, value = argument.partition("=")
        if flag not in ("--env-arg", "--env_arg"):
            remaining.append(argument)
            continue
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise UsageError(f"{flag}: must be followed by NAME=VALUE")
            value = arguments.pop(0)
        found.append(value)
    if not found:
        return remaining
    if any(word.split("=")[0] in ("--env-args", "--env_args") for word in remaining):
        raise UsageError("--env-arg: must not come with --env-args, which takes all arguments")
    return [*remaining, "--env-args", *found]


def file_name(reference: str) -> str:
    """Return a name for files of a run whose environment is a reference."""
    target = reference.rpartition(":")[0]
    return Path(target).stem if target.endswith(".py") else target.rpartition(".")[2]
