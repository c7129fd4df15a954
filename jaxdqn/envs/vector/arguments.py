"""Checks of constructor arguments, and errors for missing packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from jaxdqn.errors import suggest


class Argument(NamedTuple):
    """Argument of a constructor: its default, and the minimum if it is a number."""

    default: bool | int | float | str | None
    least: float | None = None
    most: float | None = None


def read_arguments(
    given: Mapping[str, Any], known: Mapping[str, Argument], env: str
) -> dict[str, Any]:
    """Return all arguments of a constructor, with defaults for those not given.

    Args:
      given: values by name.
      known: all valid arguments by name.
      env: name of the environment, for error messages.

    Raises:
      ValueError: naming the first argument that is unknown or invalid.
    """
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"env_args={name!r}: must be an argument of {env}; nearest: "
                f"{suggest(name, list(known))}"
            )
        constraint = _constraint(value, known[name])
        if constraint is not None:
            raise ValueError(f"env_args='{name}={value}': must be {constraint}")
    return {name: argument.default for name, argument in known.items()} | dict(given)


def changed(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the arguments that differ from their defaults, as ``NAME=VALUE``, by name."""
    return tuple(
        f"{name}={value}" for name, value in sorted(arguments.items()) if value != defaults[name]
    )


def reject_missing(env: str, package: str, extra: str) -> NoReturn:
    """Raise a ``ValueError`` for an environment whose package is not installed."""
    raise ValueError(
        f'env={env!r}: needs {package}, which is not installed; pip install "jaxdqn[{extra}]"'
    )


def _constraint(value: Any, argument: Argument) -> str | None:
    """Describe the violated constraint of a value; None if the value is valid."""
    default, least, most = argument
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if not isinstance(default, int | float):
        return None if default is None or isinstance(value, type(default)) else "text"
    whole = isinstance(default, int)
    number = "a whole number" if whole else "a number"
    if least is not None and most is not None:
        number = f"{number} from {least} to {most}"
    elif least is not None:
        number = f"{number} of at least {least}"
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return number
    low, high = -float("inf") if least is None else least, float("inf") if most is None else most
    return None if low <= value <= high else number
