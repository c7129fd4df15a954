"""Validation of a configuration, in order: types, ranges, relations. Imports no JAX."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from jaxdqn.config.algorithm_rules import validate_algorithm
from jaxdqn.config.env_args import validate_env_args
from jaxdqn.config.extra_hyper import validate_extra_hyper
from jaxdqn.config.options import RULES, Options
from jaxdqn.config.parallel_rules import validate_parallel
from jaxdqn.config.sweeps import validate_sweep
from jaxdqn.errors import reject

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

_NUMBER_LIMIT = 1e30  # well inside the range of float32, in which numbers are computed


def validate(config: Config) -> None:
    """Check every field and every relation between fields.

    Raises:
        ValueError: naming the field, its value and the constraint.
    """
    for name, kind in _kinds().items():
        value = getattr(config, name)
        if value is not None or type(None) not in get_args(kind):
            _validate_type(name, value, kind)
    _validate_ranges(config)
    validate_env_args(config)
    validate_extra_hyper(config)
    validate_sweep(config)
    validate_parallel(config)
    validate_algorithm(config)
    if config.guard == "rollback" and config.checkpoint_every == 0:
        reject("checkpoint_every", 0, "above 0 with guard='rollback'")
    if config.stop_when != "never" and config.solve_return is None:
        reject("stop_when", config.stop_when, "never unless solve_return is given")


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Options)


def _validate_type(name: str, value: Any, kind: Any) -> None:
    """Check a value against the annotation ``kind`` of its field and the registered choices."""
    choices = RULES[name].choices
    if choices is not None and get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not set(map(str, value)) <= set(choices):
            reject(name, value, f"a tuple of names among {', '.join(choices)}")
        return
    if choices is not None and (not isinstance(value, str) or value not in choices):
        reject(name, value, f"one of {', '.join(choices)}")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            reject(name, value, f"one of {', '.join(get_args(kind))}")
        return
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        wanted, is_valid = _ITEMS[item]
        if not isinstance(value, tuple) or not all(map(is_valid, value)):
            reject(name, value, wanted)
        return
    accepted = {kind, *get_args(kind)}
    if bool in accepted and not isinstance(value, bool):
        reject(name, value, "True or False")
    if str in accepted and not isinstance(value, str):
        reject(name, value, "a string")
    if int in accepted and (not isinstance(value, int) or isinstance(value, bool)):
        reject(name, value, "a whole number")
    if float in accepted:
        _validate_number(name, value)


_ITEMS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    int: (
        "a tuple of whole numbers of at least 1",
        lambda item: type(item) is int and item >= 1,
    ),
    str: ("a tuple of strings NAME=VALUE", lambda item: type(item) is str),
}


def _validate_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        reject(name, value, "a number")
    if value != value or abs(value) == math.inf:
        reject(name, value, "finite")
    if abs(value) >= _NUMBER_LIMIT:
        reject(name, value, f"finite in float32: below {_NUMBER_LIMIT:g} in size")


def _validate_ranges(config: Config) -> None:
    for name, rule in RULES.items():
        value = getattr(config, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            constraint = rule.violated(value)
            if constraint is not None:
                reject(name, value, constraint)
