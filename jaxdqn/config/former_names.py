"""Former names of options, accepted for one release. Imports no JAX."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from jaxdqn.config.options import RULES

FORMER_NAMES = {rule.formerly: name for name, rule in RULES.items() if rule.formerly is not None}
"""Current name by former name."""

T = TypeVar("T")


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former names, and their values, by the current names and values.

    Raises:
        ValueError: if an option is given under both names.
    """
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        current = FORMER_NAMES.get(name, name)
        if current != name and current in values:
            raise ValueError(
                f"{name}={value!r}: must be omitted; {current} is its new name and is given too"
            )
        renamed[current] = value if current == name else current_value(current, value)
    return renamed


def current_value(name: str, value: Any) -> Any:
    """Return the current value for a value that was given under the option's former name.

    Args:
        name: current name of the option.
        value: value under the former name.
    """
    values = RULES[name].former_values
    return values.get(value, value) if isinstance(value, Hashable) else value


def warn_of_former_names(values: Mapping[str, Any], *, stacklevel: int) -> dict[str, Any]:
    """Return ``values`` under current names, with a ``DeprecationWarning`` for each former name.

    Args:
        values: options by name.
        stacklevel: stack level that the warning names: 1 is the caller of this function.

    Raises:
        ValueError: if an option is given under both names.
    """
    renamed = current_names(values)
    for name in values:
        if name in FORMER_NAMES:
            warnings.warn(
                f"{name} is now {_described(FORMER_NAMES[name], renamed)}",
                DeprecationWarning,
                stacklevel=stacklevel + 1,
            )
    return renamed


def _described(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}={values[name]!r}" if RULES[name].former_values else name


def accept_former_names(options: type[T]) -> type[T]:
    """Let the constructor of a dataclass accept former names of options; a class decorator."""
    init = options.__init__

    @functools.wraps(init)
    def renamed(self: Any, **values: Any) -> None:
        init(self, **warn_of_former_names(values, stacklevel=2))

    options.__init__ = renamed  # type: ignore[method-assign, assignment]
    return options
