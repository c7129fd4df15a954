"""Environments of Gymnasium on the host."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.envs.vector.masks import has_mask
from jaxdqn.envs.vector.serial import SerialEnvironments
from jaxdqn.envs.vector.spaces import discrete_actions, observation_arrays
from jaxdqn.envs.vector.workers import WorkerEnvironments
from jaxdqn.types import EnvSpec

PREFIX = "gymnasium:"


def gymnasium_environment(
    name: str, arguments: Mapping[str, Any], *, processes: bool = False
) -> HostEnvironment:
    """Return an environment registered with Gymnasium.

    Args:
      name: its id; ``MODULE:ID`` imports a module first, which registers it.
      arguments: keyword arguments of ``gymnasium.make``.
      processes: as ``from_gymnasium``.

    Raises:
      ValueError: if the id or an argument is unknown, a dependency is missing, or the spaces are
        not supported.
    """

    def make() -> gymnasium.Env[Any, Any]:
        # Time steps are checked by CheckedEnvironments.
        return gymnasium.make(name, **{"disable_env_checker": True, **arguments})

    try:
        env = make()
    except Exception as error:  # arguments reach the simulator, which may raise anything
        raise ValueError(_explain(name, arguments, error)) from error
    texts = tuple(f"{key}={value}" for key, value in sorted(arguments.items()))
    host = _host_environment(env, make, PREFIX + name, processes)
    return host._replace(spec=host.spec._replace(arguments=texts))


def from_gymnasium(
    make: Callable[[], gymnasium.Env[Any, Any]], name: str, *, processes: bool = False
) -> HostEnvironment:
    """Return an environment on the host from a function that makes a Gymnasium environment.

    If the info of its reset has an ``action_mask``, that of every step is the mask of legal
    actions; see ``jaxdqn.envs.vector.masks``.

    Args:
      make: returns a new environment; called once here, and once for each environment of a run.
      name: name of the environment in reports.
      processes: step each environment in its own process, started by ``spawn``, so that a script
        needs ``if __name__ == "__main__":``; otherwise they step one after the other in this
        process.

    Raises:
      ValueError: if the spaces are not supported; see ``jaxdqn.envs.vector.spaces``.
    """
    return _host_environment(make(), make, name, processes)


def _host_environment(
    env: gymnasium.Env[Any, Any],
    make: Callable[[], gymnasium.Env[Any, Any]],
    name: str,
    processes: bool,
) -> HostEnvironment:
    """Read the properties of an environment that ``make`` made, and close it."""
    try:
        _check_kind(env)
        observations = observation_arrays(env.observation_space)
        actions = discrete_actions(env.action_space)
        masked = has_mask(env)
    except ValueError as error:
        raise ValueError(f"env={name!r}: {error}") from error
    finally:
        env.close()
    spec = EnvSpec(
        name=name,
        obs_shape=observations.shape,
        obs_dtype=observations.dtype,
        num_actions=actions.size,
        max_episode_steps=None if env.spec is None else env.spec.max_episode_steps,
        masked=masked,
    )
    kind = WorkerEnvironments if processes else SerialEnvironments
    host = HostEnvironment(
        spec, lambda num_envs: kind([make] * num_envs, observations, actions, masked)
    )
    if processes:
        return host._replace(most_eval_envs=os.cpu_count() or 1)
    return host


def _check_kind(env: Any) -> None:
    """Raise ValueError unless an object is one environment that does not reset itself."""
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise ValueError(
            f"{type(env).__name__}: must be one environment; num_envs says how many are made"
        )
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.Autoreset):
            raise ValueError("wrapper Autoreset: must be removed, episodes are reset by the run")
        env = env.env


def _explain(name: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """Return one line about an environment that cannot be made."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if arguments and not isinstance(error, gymnasium.error.Error | ModuleNotFoundError):
        return f"env_args: must be arguments of {name}; {type(error).__name__}: {reason}"
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        nearest = f"; nearest: {', '.join(PREFIX + each for each in near)}" if near else ""
        return f"env={PREFIX + name!r}: must be an id registered with Gymnasium{nearest}"
    return f"env={PREFIX + name!r}: cannot be made: {reason}"
