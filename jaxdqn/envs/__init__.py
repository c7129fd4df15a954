"""Environments on the device, all with the contract of ``jaxdqn.types.Environment``."""

from typing import Any

from jaxdqn.config.config import Config
from jaxdqn.config.env_args import read_env_args
from jaxdqn.envs.base import EpisodeState, make_environment
from jaxdqn.envs.gymnax import as_environment, make_from_arguments, make_gymnax, names
from jaxdqn.errors import reject
from jaxdqn.types import Environment

__all__ = [
    "EpisodeState",
    "configured_environment",
    "make",
    "make_environment",
    "make_gymnax",
    "names",
]


def make(name: str, **kwargs: Any) -> Environment:
    """Build a registered environment by name, with next-step autoreset.

    Args:
        name: one of ``names()``.
        **kwargs: keyword arguments of ``make_gymnax``.

    Raises:
        ValueError: if the name is unknown (the message lists the nearest names), its
            actions are continuous, or its data cannot be downloaded.
    """
    return make_gymnax(name, **kwargs)


def configured_environment(config: Config, environment: Any = None) -> Environment:
    """Return the environment of a run: the caller's own, or the registered one of ``config``.

    Args:
        config: ``env`` and its arguments.
        environment: the caller's own, as ``as_environment`` takes it; None uses ``config.env``.

    Raises:
        ValueError: as ``make`` and ``as_environment``, or if options of a registered environment
            are given with the caller's own.
    """
    if environment is None:
        return make_from_arguments(config.env, read_env_args(config.env_args))
    if config.env_args:
        reject("env_args", config.env_args, "left out with your own environment")
    return as_environment(environment)
