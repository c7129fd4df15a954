"""Custom scalars ``NAME=VALUE`` of a run, traced like the built-in ones. Imports no JAX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxdqn.config.options import RULES
from jaxdqn.errors import reject

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

_LIMIT = 1e30


def read_extra(text: str) -> tuple[str, float]:
    """Return the name and the value of ``NAME=VALUE``.

    Raises:
        ValueError: if the value is not a number.
    """
    name, _, value = text.partition("=")
    return name.strip().replace("-", "_"), float(value)


def validate_extra_hyper(config: Config) -> None:
    """Check the custom scalars.

    Raises:
        ValueError: if a scalar is not ``NAME=VALUE`` with a finite number, is named like an option,
            or is given twice.
    """
    names: list[str] = []
    for text in config.extra_hyper:
        try:
            name, value = read_extra(text)
        except ValueError:
            name, value = "", 0.0
        if not name.isidentifier():
            reject("extra_hyper", text, "NAME=VALUE with a number, as in bonus_scale=0.1")
        if name in RULES:
            reject("extra_hyper", text, f"a new name; {name} is an option of the library")
        if name in names:
            reject("extra_hyper", text, f"the only value of {name}")
        if not math.isfinite(value) or abs(value) >= _LIMIT:
            reject("extra_hyper", text, f"finite in float32: below {_LIMIT:g} in size")
        names.append(name)
