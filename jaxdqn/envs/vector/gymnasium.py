"""Environments of Gymnasium on the host."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxdqn.envs.vector.base import HostEnvironment, time_step
from jaxdqn.envs.vector.spaces import (
    DiscreteActions,
    ObservationArrays,
    discrete_actions,
    observation_arrays,
)
from jaxdqn.types import EnvSpec, TimeStep

PREFIX = "gymnasium:"


def gymnasium_environment(name: str, arguments: Mapping[str, Any]) -> HostEnvironment:
    """Return an environment registered with Gymnasium.

    Args:
      name: its id; ``MODULE:ID`` imports a module first, which registers it.
      arguments: keyword arguments of ``gymnasium.make``.

    Raises:
      ValueError: if the id or an argument is unknown, a dependency is missing, or the spaces are
        not supported.
    """

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(name, **arguments)

    try:
        env = make()
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        raise ValueError(_explain(name, arguments, error)) from error
    try:
        observations = observation_arrays(env.observation_space)
        actions = discrete_actions(env.action_space)
    except ValueError as error:
        raise ValueError(f"env={PREFIX + name!r}: {error}") from error
    finally:
        env.close()
    limit = None if env.spec is None else env.spec.max_episode_steps
    spec = EnvSpec(
        name=PREFIX + name,
        obs_shape=observations.shape,
        obs_dtype=observations.dtype,
        num_actions=actions.size,
        max_episode_steps=limit,
        arguments=tuple(f"{key}={value}" for key, value in sorted(arguments.items())),
    )
    return HostEnvironment(spec, lambda num_envs: _Vector([make] * num_envs, observations, actions))


class _Vector:
    """Environments of Gymnasium that step one after the other in this process."""

    def __init__(
        self,
        makers: list[Callable[[], gymnasium.Env[Any, Any]]],
        observations: ObservationArrays,
        actions: DiscreteActions,
    ) -> None:
        self._envs: Any = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        self._observations, self._actions = observations, actions
        self._ended = np.zeros(len(makers), bool)

    def reset(self, seed: int) -> TimeStep:
        obs, _ = self._envs.reset(seed=seed)
        self._ended = np.zeros(len(self._ended), bool)
        no = np.zeros(len(self._ended), bool)
        return self._time_step(obs, no, no, no, ~no)

    def step(self, actions: np.ndarray) -> TimeStep:
        obs, reward, terminated, truncated, _ = self._envs.step(self._actions.convert(actions))
        # The environments that ended at the step before have been reset by this one.
        first, self._ended = self._ended, terminated | truncated
        return self._time_step(obs, reward, terminated, truncated & ~terminated, first)

    def close(self) -> None:
        self._envs.close()

    def _time_step(
        self, obs: Any, reward: Any, terminated: Any, truncated: Any, first: Any
    ) -> TimeStep:
        arrays = self._observations.convert(obs, len(first))
        return time_step(arrays, reward, terminated, truncated, first, self._observations.dtype)


def _explain(name: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """Return one line about an environment that cannot be made."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, TypeError) and arguments:
        return f"env_args: must be arguments of {name}; {reason}"
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        nearest = f"; nearest: {', '.join(PREFIX + each for each in near)}" if near else ""
        return f"env={PREFIX + name!r}: must be an id registered with Gymnasium{nearest}"
    return f"env={PREFIX + name!r}: cannot be made: {reason}"
