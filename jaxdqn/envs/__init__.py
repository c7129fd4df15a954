"""Environments on the device (contract ``jaxdqn.types.Environment``) and on the host."""

from collections.abc import Sequence
from typing import Any

from jaxdqn.config.config import Config, replace
from jaxdqn.config.env_args import read_env_args
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.protocols import is_minatar
from jaxdqn.config.suite_envs import is_suite_env
from jaxdqn.envs.action_sets import full_action_set
from jaxdqn.envs.base import EpisodeState, make_environment
from jaxdqn.envs.gymnax import as_environment, make_from_arguments, make_gymnax, names
from jaxdqn.envs.sticky import with_sticky_actions
from jaxdqn.envs.suites import make_suite
from jaxdqn.envs.vector import HostEnvironment, host_environment
from jaxdqn.envs.vector.bounds import with_checked_bounds
from jaxdqn.envs.vector.sticky import with_sticky_actions_on_host
from jaxdqn.errors import reject
from jaxdqn.types import Environment

__all__ = [
    "EpisodeState",
    "configured_environment",
    "configured_host_environment",
    "environment_of_name",
    "make",
    "make_environment",
    "make_gymnax",
    "names",
    "with_host_options",
    "with_sticky_actions",
]


def make(name: str, **kwargs: Any) -> Environment:
    """Build a registered environment by name, with next-step autoreset.

    Args:
        name: one of ``names()``, or ``SUITE:ID`` for another suite on the device.
        **kwargs: keyword arguments of ``make_gymnax``, or the arguments of the suite.

    Raises:
        ValueError: if the name (the message lists the nearest names) or an argument is unknown, or
            if the environment has continuous actions, needs a suite that is not installed, or needs
            data that cannot be downloaded.
    """
    return make_suite(name, kwargs) if is_suite_env(name) else make_gymnax(name, **kwargs)


def configured_host_environment(config: Config, environment: Any = None) -> HostEnvironment | None:
    """Return the environment of a run if it is on the host; None if it is on the device.

    Args:
        config: configuration with ``env`` and its arguments.
        environment: custom environment; None uses ``config.env``.

    Raises:
        ValueError: as ``host_environment`` and ``with_host_options``, or if options for registered
            environments are set together with a custom one.
    """
    if isinstance(environment, HostEnvironment):
        for name in ("env_args", "env_processes"):
            if getattr(config, name):
                reject(name, getattr(config, name), "left out with your own environment on the "
                       "host; from_gymnasium takes processes=True")  # fmt: skip
        return with_host_options(config, environment)
    if environment is None and is_host_env(config.env):
        arguments = read_env_args(config.env_args)
        made = host_environment(config.env, arguments, processes=config.env_processes)
        return with_host_options(config, made)
    return None


def with_host_options(config: Config, environment: HostEnvironment) -> HostEnvironment:
    """Apply ``check_bounds`` and ``sticky_actions``; a second call has no effect.

    Raises:
        ValueError: if the environment does not support one of them.
    """
    if config.check_bounds:
        environment = with_checked_bounds(environment)
    return with_sticky_actions_on_host(environment, config.sticky_actions)


def configured_environment(config: Config, environment: Any = None) -> Environment:
    """Return the environment of a run: a custom one, or the registered one of ``config``.

    Args:
        config: configuration with ``env``, its arguments and actions, and ``sticky_actions``.
        environment: custom environment, as for ``as_environment``; None uses ``config.env``.

    Raises:
        ValueError: as ``make`` and ``as_environment``, or if options for registered environments
            are set together with a custom one.
    """
    if environment is None:
        arguments: dict[str, Any] = dict(read_env_args(config.env_args))
        if config.full_action_set:
            arguments |= full_action_set(config.env, arguments)
        suite = is_suite_env(config.env)
        made = (make_suite if suite else make_from_arguments)(config.env, arguments)
    else:
        for name in ("env_args", "full_action_set"):
            if getattr(config, name):
                reject(name, getattr(config, name), "left out with your own environment")
        made = as_environment(environment)
    return with_sticky_actions(made, config.sticky_actions)


def environment_of_name(
    config: Config, name: str, arguments: Sequence[str] = ()
) -> tuple[Environment | HostEnvironment, float]:
    """Return the registered environment ``name`` for a run's policy, and its ``sticky_actions``.

    On the device, ``config`` determines the sticky actions and the action set of a MinAtar game.
    An environment on the host uses its own settings, and the returned ``sticky_actions`` are 0.

    Args:
        config: configuration of the run.
        name: name of the environment, as in ``Config.env``.
        arguments: arguments of the environment, as in ``Config.env_args``.

    Raises:
        ValueError: as ``configured_environment``.
    """
    on_host = is_host_env(name)
    sticky = 0.0 if on_host else config.sticky_actions
    full = config.full_action_set and is_minatar(name)
    config = replace(
        config,
        env=name,
        env_args=tuple(arguments),
        sticky_actions=sticky,
        full_action_set=full,
        check_bounds=False,
    )
    made = configured_host_environment(config) if on_host else configured_environment(config)
    assert made is not None
    return made, sticky
