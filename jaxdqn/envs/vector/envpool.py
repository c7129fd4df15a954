"""Environments of EnvPool, stepped by the threads of EnvPool."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxdqn.envs.vector.arguments import Argument, changed, read_arguments, reject_missing
from jaxdqn.envs.vector.base import HostEnvironment, cpus, time_step
from jaxdqn.envs.vector.spaces import (
    DiscreteActions,
    ObservationArrays,
    discrete_actions,
    observation_arrays,
)
from jaxdqn.errors import reject
from jaxdqn.types import EnvSpec, TimeStep

PREFIX = "envpool:"

_SET_HERE = (
    "num_envs", "batch_size", "seed", "env_seed", "max_num_players", "base_path",
    "gym_reset_return_info",
)  # fmt: skip
"""Arguments of ``envpool.make`` that the adapter sets."""
_NO_LIMIT = 2**31 - 1


def envpool_environment(name: str, given: Mapping[str, Any]) -> HostEnvironment:
    """Return an environment of EnvPool.

    Args:
      name: id of the environment, such as ``HighwayFast-v0``.
      given: arguments of ``envpool.make``.

    Raises:
      ValueError: if EnvPool is not installed, the id or an argument is unknown, a value is invalid,
        or the spaces are not supported.
    """
    env = PREFIX + name
    try:
        import envpool
    except ModuleNotFoundError as error:
        if error.name != "envpool":
            raise
        reject_missing(env, "EnvPool", "envpool")
    known = envpool.list_all_envs()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        nearest = f"; nearest: {', '.join(PREFIX + each for each in near)}"
        reject("env", env, f"an id of EnvPool{nearest if near else ', such as envpool:Pong-v5'}")
    with _without_warnings():
        defaults = dict(envpool.make_spec(name).config._asdict())
    accepted = {key: Argument(value) for key, value in defaults.items() if key not in _SET_HERE}
    accepted["max_episode_steps"] = accepted["max_episode_steps"]._replace(least=1)
    arguments = read_arguments(given, accepted, env)
    try:
        with _without_warnings():
            made = envpool.make_spec(name, **arguments)
            observations = observation_arrays(made.observation_space)
            actions = discrete_actions(made.action_space)
        if made.config.max_num_players > 1:
            raise ValueError("it has several players, and must have one")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"env={env!r}: {reason}") from error
    limit = made.config.max_episode_steps
    threads = {"num_threads": defaults["num_threads"]}  # does not affect the episodes
    spec = EnvSpec(
        name=env,
        obs_shape=observations.shape,
        obs_dtype=observations.dtype,
        num_actions=actions.size,
        max_episode_steps=None if limit == _NO_LIMIT else limit,
        arguments=changed({**arguments, **threads}, defaults),
    )
    make = partial(_Vector, name, arguments, observations, actions)
    return HostEnvironment(spec, make, bounds=observations.bounds)


class _Vector:
    """E environments with EnvPool's own next-step autoreset.

    The step after the end of an episode ignores its action and returns the first observation of
    the next episode, with a reward of 0 and ``elapsed_step`` 0.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        observations: ObservationArrays,
        actions: DiscreteActions,
        num_envs: int,
    ) -> None:
        threads = min(num_envs, arguments["num_threads"] or cpus())
        self._name, self._arguments = name, {**arguments, "num_threads": threads}
        self._observations, self._actions = observations, actions
        self._ended = np.zeros(num_envs, bool)
        self._envs: Any = None

    def reset(self, seed: int) -> TimeStep:
        import envpool

        num_envs = len(self._ended)
        self.close()  # EnvPool takes a seed only at construction
        with _without_warnings():
            self._envs = envpool.make(
                self._name,
                env_type="gymnasium",
                num_envs=num_envs,
                seed=seed % (2**31 - num_envs),  # environment i uses seed + i
                **self._arguments,
            )
            obs, _ = self._envs.reset()  # creates the spaces
            self._dtype = self._envs.action_space.dtype
        no = np.zeros(num_envs, bool)
        self._ended = no
        return self._time_step(obs, no, no, no, ~no)

    def step(self, actions: np.ndarray) -> TimeStep:
        converted = self._actions.convert(actions).astype(self._dtype)
        obs, reward, terminated, truncated, _ = self._envs.step(converted)
        first, self._ended = self._ended, terminated | truncated
        return self._time_step(obs, reward, terminated, truncated & ~terminated, first)

    def close(self) -> None:
        self._envs = None  # ends its threads

    def _time_step(
        self, obs: Any, reward: Any, terminated: Any, truncated: Any, first: Any
    ) -> TimeStep:
        arrays = self._observations.convert(obs, len(first))
        return time_step(arrays, reward, terminated, truncated, first, self._observations.dtype)


def _without_warnings() -> Any:
    """Return a context that ignores Gymnasium's warnings about float64 bounds."""
    return warnings.catch_warnings(action="ignore")
