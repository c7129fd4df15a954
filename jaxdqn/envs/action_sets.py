"""Action sets of the MinAtar games: all six actions, or only those that have an effect."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from jaxdqn.config.suite_envs import is_suite_env
from jaxdqn.envs.gymnax import load, names
from jaxdqn.errors import reject

_ARGUMENT = "use_minimal_action_set"


def full_action_set(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument of a gymnax environment that selects its full set of actions.

    Args:
        name: name of the environment, as in ``Config.env``.
        arguments: other arguments of the environment.

    Raises:
        ValueError: if the environment does not exist or has only one action set, or if
            ``arguments`` also select a set.
    """
    if is_suite_env(name) or not _has_two_sets(name):
        having = [other for other in names() if other.endswith("-MinAtar")]
        reject("full_action_set", True, f"False with env={name!r}, which has one set of actions; "
               f"environments with two: {', '.join(having)}")  # fmt: skip
    if _ARGUMENT in arguments:
        reject("full_action_set", True, f"False with the argument {_ARGUMENT} of the environment")
    return {_ARGUMENT: False}


def _has_two_sets(name: str) -> bool:
    constructor = type(load(name)[0]).__init__
    return _ARGUMENT in inspect.signature(constructor).parameters
