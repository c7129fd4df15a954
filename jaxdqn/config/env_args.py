"""Arguments ``NAME=VALUE`` of an environment. Imports no JAX."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jaxdqn.errors import reject

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

Argument = bool | int | float | str
"""Value of an argument of an environment."""

_BOOLS = {"true": True, "false": False}


def read_env_args(texts: Iterable[str]) -> dict[str, Argument]:
    """Return the values of arguments ``NAME=VALUE`` by name.

    A value is read as a bool (true or false), an int or a float if possible, else as a string.
    """
    return dict(map(_read, texts))


def validate_env_args(config: Config) -> None:
    """Check the form of the arguments; only the environment knows their names.

    Raises:
        ValueError: if an argument is not ``NAME=VALUE``, or is given twice.
    """
    names: list[str] = []
    for text in config.env_args:
        name, value = _read(text)
        if not name.isidentifier() or value == "":
            reject("env_args", text, "NAME=VALUE, as in max_steps_in_episode=50")
        if name in names:
            reject("env_args", text, f"the only value of {name}")
        names.append(name)


def _read(text: str) -> tuple[str, Argument]:
    name, _, value = text.partition("=")
    return name.strip().lstrip("-").replace("-", "_"), _value(value.strip())


def _value(text: str) -> Argument:
    if text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
