"""Gymnasium environments that are stepped in turn in this process.

Gymnasium's ``SyncVectorEnv`` also copies observations into a buffer of its space and merges the
infos of all environments. Without these, a vector step of CartPole takes two thirds of the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from jaxdqn.envs.vector.masks import MASK, read_mask
from jaxdqn.envs.vector.spaces import DiscreteActions, ObservationArrays
from jaxdqn.types import TimeStep


class SerialEnvironments:
    """A ``VectorEnvironment`` of E Gymnasium environments, with next-step autoreset.

    Args:
      makers: E functions that return an environment.
      observations: conversion of the observations.
      actions: conversion of the actions.
      masked: True to read the mask of legal actions from the infos.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        observations: ObservationArrays,
        actions: DiscreteActions,
        masked: bool = False,
    ) -> None:
        self._envs: list[gymnasium.Env[Any, Any]] = []
        try:
            for make in makers:
                self._envs.append(make())
        except BaseException:
            self.close()
            raise
        self._observations, self._actions, self._masked = observations, actions, masked
        self._shape = (len(self._envs), *observations.shape)
        self._ended = [False] * len(self._envs)

    def reset(self, seed: int) -> TimeStep:
        """Start an episode in every environment; environment i is seeded with ``seed + i``."""
        count = len(self._envs)
        obs = np.empty(self._shape, self._observations.dtype)
        infos: list[Any] = [None] * count
        for index, env in enumerate(self._envs):
            seen, infos[index] = env.reset(seed=seed + index)
            self._write(obs, index, seen)
        self._ended = [False] * count
        no: Any = np.zeros(count, bool)
        legal = self._legal(infos, self._ended)
        return TimeStep(_array(obs), _array(np.zeros(count, np.float32)), no, no, ~no, legal)

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step every environment, or reset it if its episode has ended."""
        count, ended = len(self._envs), self._ended
        obs = np.empty(self._shape, self._observations.dtype)
        rewards = [0.0] * count
        terminated, truncated = [False] * count, [False] * count
        infos: list[Any] = [None] * count
        for index, action in enumerate(self._actions.convert(actions)):
            env = self._envs[index]
            if ended[index]:
                seen, infos[index] = env.reset()
                self._write(obs, index, seen)
                continue
            seen, reward, terminal, cut, infos[index] = env.step(action)
            self._write(obs, index, seen)
            rewards[index] = float(reward)
            terminated[index], truncated[index] = bool(terminal), bool(cut) and not terminal
        # This step has reset the environments that ended at the previous step.
        self._ended = [one or other for one, other in zip(terminated, truncated, strict=True)]
        return TimeStep(
            _array(obs),
            _array(np.array(rewards, np.float32)),
            _array(np.array(terminated)),
            _array(np.array(truncated)),
            _array(np.array(ended)),
            self._legal(infos, self._ended),
        )

    def render(self) -> np.ndarray:
        """Return a frame of the first environment, uint8 [height, width, 3]."""
        return np.asarray(self._envs[0].render())

    def close(self) -> None:
        """Close every environment, even if closing one of them fails."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()

    def _legal(self, infos: list[Any], ended: list[bool]) -> Any:
        """Return ``TimeStep.legal`` from the infos of all environments."""
        if not self._masked:
            return ()
        size = self._actions.size
        return np.stack([
            read_mask(info.get(MASK), index, size, ended=ended[index])
            for index, info in enumerate(infos)
        ])  # fmt: skip

    def _write(self, batch: np.ndarray, index: int, obs: Any) -> None:
        converted = self._observations.convert_one(obs)
        if np.shape(converted) != batch.shape[1:]:
            raise ValueError(
                f"environment {index} returned an observation of shape "
                f"{list(np.shape(converted))}, and its space has {list(batch.shape[1:])}"
            )
        batch[index] = converted


def _array(values: np.ndarray) -> Any:
    """Return a NumPy array typed as the JAX array that ``TimeStep`` declares."""
    return values
