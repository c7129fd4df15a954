"""Environments on the host with checks of what they return."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import RunFailed
from jaxdqn.types import EnvSpec, TimeStep


class EnvironmentFailed(RunFailed):
    """An environment on the host raised an exception, or returned an invalid time step.

    Args:
      message: one line.
      state: ``TrainState`` after the last complete iteration; None if it is not known.
      report: metrics and counters of the chunk up to there; None without a complete iteration.
      iterations: complete iterations of the chunk.
    """

    def __init__(
        self, message: str, state: Any = None, report: Any = None, iterations: int = 0
    ) -> None:
        super().__init__(message)
        self.state, self.report, self.iterations = state, report, iterations


class CheckedEnvironments:
    """E environments that raise ``EnvironmentFailed`` for exceptions and invalid time steps.

    Args:
      environment: to start.
      num_envs: E.
    """

    def __init__(self, environment: HostEnvironment, num_envs: int) -> None:
        self._spec, self._num_envs = environment.spec, num_envs
        try:
            self._envs = environment.make(num_envs)
        except Exception as error:
            raise self._failure("start", error) from error

    def reset(self, seed: int) -> TimeStep:
        """Start an episode in every environment."""
        try:
            return check_time_step(self._envs.reset(seed), self._spec, self._num_envs)
        except Exception as error:
            raise self._failure("reset", error) from error

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step every environment. ``actions`` is [E] int32."""
        try:
            return check_time_step(self._envs.step(actions), self._spec, self._num_envs)
        except Exception as error:
            raise self._failure("step", error) from error

    def close(self) -> None:
        """Close the environments, which may have failed."""
        with contextlib.suppress(Exception):
            self._envs.close()

    def _failure(self, what: str, error: Exception) -> EnvironmentFailed:
        reason = " ".join(str(error).split()) or "without a message"
        kind = type(error).__name__
        return EnvironmentFailed(f"env={self._spec.name!r}: {what} failed: {kind}: {reason}")


def check_time_step(timestep: TimeStep, spec: EnvSpec, num_envs: int) -> TimeStep:
    """Return a time step of E environments after a check of its arrays.

    Raises:
      ValueError: naming what is invalid, and the environment.
    """
    wanted: dict[str, Any] = {name: ((num_envs,), np.dtype(bool)) for name in TimeStep._fields}
    wanted["obs"] = (num_envs, *spec.obs_shape), spec.obs_dtype
    wanted["reward"] = (num_envs,), np.dtype(np.float32)
    for name, (shape, dtype) in wanted.items():
        leaf = getattr(timestep, name)
        if leaf.shape != shape or leaf.dtype != dtype:
            raise ValueError(
                f"{name} is {leaf.dtype}{list(leaf.shape)}, and must be {dtype}{list(shape)}"
            )
    reward = np.asarray(timestep.reward)
    if not np.isfinite(reward).all():
        index = int(np.flatnonzero(~np.isfinite(reward))[0])
        raise ValueError(f"environment {index} returned a reward of {reward[index]}")
    return timestep
