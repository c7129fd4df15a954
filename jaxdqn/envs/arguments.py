"""Arguments of environments on the device: parameter fields and constructor arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from jaxdqn.errors import suggest

LIMITS = frozenset(
    {
        "max_steps_in_episode",
        "max_steps",
        "max_timesteps",
        "max_episode_steps",
        "max_num_steps_per_episodes",
        "time_limit",
    }
)
"""Names of the episode step limit in gymnax and the suites."""


def split_arguments(
    env: Any, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide arguments into fields of the environment's parameters and constructor arguments.

    Args:
        env: a gymnax environment made with its default arguments.
        arguments: values by name.

    Raises:
        ValueError: if there is no such argument, or its value has the wrong type.
    """
    params, constructor = _fields(env.default_params), _constructor(env)
    known = {**constructor, **params}
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(
                f"env_args={name!r}: must be an argument of {env.name}; nearest: "
                f"{suggest(name, list(known))}"
            )
        _check_type(name, value, known[name])
    return (
        {name: value for name, value in arguments.items() if name in params},
        {name: value for name, value in arguments.items() if name not in params},
    )


def replace_params(name: str, env_params: Any, overrides: Mapping[str, Any]) -> Any:
    """Return the parameters of the environment ``name`` with some fields replaced.

    Raises:
        ValueError: if there is no such field, or its value has the wrong type.
    """
    fields, values = _fields(env_params), {}
    for field, value in overrides.items():
        if field not in fields:
            raise ValueError(
                f"params={field!r}: must be a field of {name}; nearest: "
                f"{suggest(field, list(fields))}"
            )
        _check_type(field, value, fields[field], argument="params")
        # gymnax selects between parameters and states, so their dtypes must agree.
        values[field] = float(value) if isinstance(fields[field], float) else value
    return env_params.replace(**values)


def changed_arguments(env: Any, env_params: Any, constructor: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the arguments that differ from the defaults, as ``NAME=VALUE``, sorted by name.

    Args:
        env: a gymnax environment.
        env_params: parameters with which it is used.
        constructor: arguments with which it was constructed.
    """
    before, now = {**_fields(env.default_params), **_constructor(env)}, _fields(env_params)
    values = {**now, **constructor}
    return tuple(
        f"{name}={_text(values[name])}"
        for name in sorted(values)
        if name not in before or _text(values[name]) != _text(before[name])
    )


def plain_fields(instance: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass that are numbers, bools, strings or step limits, by name.

    Args:
        instance: instance of a dataclass.
        without: names of fields to omit.
    """
    return {
        name: value
        for name, value in _fields(instance).items()
        if name not in without and (isinstance(value, bool | int | float | str) or name in LIMITS)
    }


def checked(name: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Check arguments against the names and types of the defaults, and return them.

    An integer becomes a float if the default is a float.

    Args:
        name: name of the environment.
        arguments: values by name.
        defaults: default of every argument of the environment; a default of None accepts any type.

    Raises:
        ValueError: if there is no such argument, or its value has the wrong type.
    """
    for key, value in arguments.items():
        if key not in defaults:
            constraint = f"nearest: {suggest(key, list(defaults))}" if defaults else "it has none"
            raise ValueError(f"env_args={key!r}: must be an argument of {name}; {constraint}")
        _check_type(key, value, defaults[key])
    return {
        key: float(value) if isinstance(defaults[key], float) else value
        for key, value in arguments.items()
    }


def changed(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the arguments that differ from the defaults, as ``NAME=VALUE``, sorted by name."""
    return tuple(
        f"{name}={_text(value)}"
        for name, value in sorted(arguments.items())
        if _text(value) != _text(defaults[name])
    )


def _fields(env_params: Any) -> dict[str, Any]:
    return {field.name: getattr(env_params, field.name) for field in dataclasses.fields(env_params)}


def _constructor(env: Any) -> dict[str, Any]:
    """Return the defaults of the named arguments of the environment's constructor."""
    parameters = inspect.signature(type(env)).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name: parameter.default for parameter in parameters if parameter.kind in kinds
    }


def _text(value: Any) -> str:
    return " ".join(str(value).split())


def _check_type(name: str, value: Any, default: Any, argument: str = "env_args") -> None:
    """Check a plain value against the type of a plain default, and the range of a step limit."""
    wanted: tuple[type, ...]
    if name in LIMITS:
        words, wanted = "a whole number", (int,)
    elif isinstance(default, bool):
        words, wanted = "true or false", (bool,)
    elif isinstance(default, int):
        words, wanted = "a whole number", (int,)
    elif isinstance(default, float):
        words, wanted = "a number", (int, float)
    elif isinstance(default, str):
        words, wanted = "a name", (str,)
    else:
        return
    invalid = isinstance(value, bool) and bool not in wanted
    if isinstance(value, bool | int | float | str) and (invalid or not isinstance(value, wanted)):
        raise ValueError(f"{argument}='{name}={value}': must be {words}")
    if name in LIMITS and value < 1:
        raise ValueError(f"{argument}='{name}={value}': must be at least 1")
