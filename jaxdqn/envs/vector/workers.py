"""Gymnasium environments that step in separate processes."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from jaxdqn.config.options import CHECKPOINT_SIGNALS
from jaxdqn.envs.vector.base import SimulatorError, time_step
from jaxdqn.envs.vector.masks import read_masks
from jaxdqn.envs.vector.spaces import DiscreteActions, ObservationArrays
from jaxdqn.types import TimeStep

_CLOSE_SECONDS = 5.0
"""Time for the environments to close before their processes are killed."""


_REPORT = "jaxdqn_exception"


class WorkerEnvironments:
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
        # Not fork, which can deadlock because JAX runs threads.
        self._envs: Any = AsyncVectorEnv(
            [partial(_make_in_worker, make, os.getpid()) for make in makers],
            context="spawn",
            copy=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )
        self._failed = False
        self._observations, self._actions, self._masked = observations, actions, masked
        self._ended = np.zeros(len(makers), bool)

    def reset(self, seed: int) -> TimeStep:
        """Start an episode in every environment; environment i is seeded with ``seed + i``."""
        obs, infos = self._call(lambda: self._envs.reset(seed=seed))
        _raise_reported(infos)
        self._ended = np.zeros(len(self._ended), bool)
        no = np.zeros(len(self._ended), bool)
        return self._time_step(infos, obs, no, no, no, ~no)

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step every environment, or reset it if its episode has ended."""
        converted = self._actions.convert(actions)
        obs, reward, terminated, truncated, infos = self._call(lambda: self._envs.step(converted))
        _raise_reported(infos)
        # This step has reset the environments that ended at the previous step.
        first, self._ended = self._ended, terminated | truncated
        return self._time_step(infos, obs, reward, terminated, truncated & ~terminated, first)

    def close(self) -> None:
        """Close the environments and kill the processes that do not end."""
        if self._failed:  # the others may still be stepping and would answer late
            self._kill()
            return
        killer = threading.Timer(_CLOSE_SECONDS, self._kill)
        killer.start()
        try:
            self._envs.close()
        except (EOFError, ConnectionError):  # a process has ended
            self._kill()
        finally:
            killer.cancel()

    def _kill(self) -> None:
        for process in self._envs.processes:
            process.kill()
        for process in self._envs.processes:
            process.join()
        self._envs.closed = True  # nothing is left to close when it is deleted

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            self._failed = True
            result = function()
            self._failed = False
            return result
        except (EOFError, ConnectionError) as error:
            raise SimulatorError(self._ended_processes()) from error

    def _ended_processes(self) -> str:
        """Describe the first ended process in one line."""
        for index, process in enumerate(self._envs.processes):
            process.join(0.2)
            if process.exitcode is not None:
                return f"the process of environment {index} ended with exit code {process.exitcode}"
        return "the connection to a process of the environments was lost"

    def _time_step(
        self, infos: Any, obs: Any, reward: Any, terminated: Any, truncated: Any, first: Any
    ) -> TimeStep:
        arrays = self._observations.convert(obs, len(first))
        legal = read_masks(infos, self._ended, self._actions.size) if self._masked else None
        dtype = self._observations.dtype
        return time_step(arrays, reward, terminated, truncated, first, dtype, legal)


def _raise_reported(infos: Mapping[str, Any]) -> None:
    """Raise the exception of a worker if the infos contain one."""
    for report in infos.get(_REPORT, ()):
        if report is not None:
            line, trace = report
            raise SimulatorError(line) from _Trace(trace)


class _Trace(Exception):
    """Traceback of another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Reporting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Report the exceptions of an environment in its infos, with their tracebacks.

    Exceptions that Gymnasium forwards have no traceback.
    """

    def reset(self, **arguments: Any) -> Any:
        try:
            return self.env.reset(**arguments)
        except Exception as error:
            return self.observation_space.sample(), _report(error)

    def step(self, action: Any) -> Any:
        try:
            return self.env.step(action)
        except Exception as error:
            return self.observation_space.sample(), 0.0, False, False, _report(error)


def _report(error: Exception) -> dict[str, Any]:
    text = " ".join(str(error).split()) or "without a message"
    line = f"{type(error).__name__}: {text}"
    return {_REPORT: (line, "".join(traceback.format_exception(error)))}


def _make_in_worker(
    make: Callable[[], gymnasium.Env[Any, Any]], run: int
) -> gymnasium.Env[Any, Any]:
    """Make an environment; in a worker, ignore all signals that the process ``run`` handles.

    Terminals and schedulers send signals to every process of a group. The run still needs its
    environments until the end of the chunk, and then ends the workers itself. Gymnasium also calls
    this function in the main process, to read the spaces.
    """
    if os.getpid() != run:
        for name in ("SIGINT", *CHECKPOINT_SIGNALS):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    return _Reporting(make())
