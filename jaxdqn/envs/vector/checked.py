"""Environments on the host with checks of their time steps."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from jaxdqn.envs.vector.base import HostEnvironment, SimulatorError
from jaxdqn.envs.vector.bounds import check_bounds
from jaxdqn.envs.vector.restarts import EnvironmentFailed, Restarts
from jaxdqn.types import EnvSpec, TimeStep

_FLOAT, _BOOL = np.dtype(np.float32), np.dtype(bool)


class CheckedEnvironments:
    """E environments that raise ``EnvironmentFailed`` for exceptions and invalid time steps.

    Args:
      environment: environment to start.
      num_envs: E, number of environments.
      restarts: restarts that failing steps may use, none by default. A restart closes all
        environments, creates them again and starts new episodes with ``first``.
    """

    def __init__(
        self, environment: HostEnvironment, num_envs: int, restarts: Restarts | None = None
    ) -> None:
        self._environment, self._num_envs = environment, num_envs
        self._spec, self._restarts = environment.spec, restarts or Restarts()
        self._seed = 0
        self._start()

    def reset(self, seed: int) -> TimeStep:
        """Start an episode in every environment."""
        self._seed = seed
        try:
            return self._checked(self._envs.reset(seed))
        except Exception as error:
            raise self._failure("reset", error) from error

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step every environment. ``actions`` is [E] int32."""
        try:
            return self._checked(self._envs.step(actions))
        except Exception as error:
            failed = self._failure("step", error)
            failed.__cause__ = error
            if self._restarts.take(failed) is None:
                raise failed from error
            return self._restart()  # an exception in it keeps this one as its context

    def close(self) -> None:
        """Close the environments, which may have failed."""
        with contextlib.suppress(Exception):
            self._envs.close()

    def _checked(self, timestep: TimeStep) -> TimeStep:
        check_time_step(timestep, self._spec, self._num_envs)
        if self._environment.check_bounds and self._environment.bounds is not None:
            check_bounds(np.asarray(timestep.obs), self._environment.bounds)
        return timestep

    def _start(self) -> None:
        try:
            self._envs = self._environment.make(self._num_envs)
        except Exception as error:
            raise self._failure("start", error) from error

    def _restart(self) -> TimeStep:
        self.close()
        self._start()
        # Use a different seed, so that the environments do not fail in the same way again.
        return self.reset((self._seed + self._num_envs) % 2**31)

    def _failure(self, what: str, error: Exception) -> EnvironmentFailed:
        reason = " ".join(str(error).split()) or "without a message"
        if not isinstance(error, SimulatorError):
            reason = f"{type(error).__name__}: {reason}"
        return EnvironmentFailed(f"env={self._spec.name!r}: {what} failed: {reason}")


def check_time_step(timestep: TimeStep, spec: EnvSpec, num_envs: int) -> TimeStep:
    """Check the arrays of a time step of E environments, and return it.

    Raises:
      ValueError: naming the invalid value and its environment.
    """
    _check(timestep.obs, "obs", (num_envs, *spec.obs_shape), spec.obs_dtype)
    _check(timestep.reward, "reward", (num_envs,), _FLOAT)
    for name in ("terminated", "truncated", "first"):
        _check(getattr(timestep, name), name, (num_envs,), _BOOL)
    if not math.isfinite(timestep.reward.sum()):
        finite = np.isfinite(np.asarray(timestep.reward))
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise ValueError(f"environment {index} returned a reward of {timestep.reward[index]}")
    if spec.obs_dtype == _FLOAT and not np.isfinite(timestep.obs).all():
        _check_finite(np.asarray(timestep.obs), np.asarray(timestep.terminated))
    _check_masks(timestep, spec, num_envs)
    return timestep


def _check_finite(obs: np.ndarray, terminated: np.ndarray) -> None:
    """Check that observations [E, ...] are finite, except in terminal states (unused)."""
    finite = np.isfinite(obs.reshape(len(obs), -1))
    wrong = ~(finite.all(axis=1) | terminated)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        value = obs.reshape(len(obs), -1)[index][~finite[index]][0]
        raise ValueError(f"environment {index} returned an observation that contains {value}")


def _check_masks(timestep: TimeStep, spec: EnvSpec, num_envs: int) -> None:
    if not spec.masked:
        if not isinstance(timestep.legal, tuple):
            raise ValueError("legal is a mask, and must be empty: the specification has none")
        return
    if isinstance(timestep.legal, tuple):
        raise ValueError(f"legal is empty, and must be bool[{num_envs}, {spec.num_actions}]")
    _check(timestep.legal, "legal", (num_envs, spec.num_actions), _BOOL)
    stuck = ~(timestep.legal.any(axis=1) | timestep.terminated | timestep.truncated)
    if stuck.any():
        index = int(np.flatnonzero(stuck)[0])
        raise ValueError(f"environment {index} returned a mask without a legal action")


def _check(leaf: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if leaf.shape != shape or leaf.dtype != dtype:
        raise ValueError(
            f"{name} is {leaf.dtype}{list(leaf.shape)}, and must be {dtype}{list(shape)}"
        )
