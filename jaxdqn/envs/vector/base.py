"""Contract of environments on the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxdqn.types import EnvSpec, TimeStep


class SimulatorError(Exception):
    """Failure of a simulator in another process; the message names its exception."""


class VectorEnvironment(Protocol):
    """E environments that step together, with next-step autoreset.

    The step that ends an episode returns its true final observation. The following step ignores
    the action of that environment, resets it, and returns ``first=True``. Time steps have NumPy
    leaves [E, ...] with the dtypes of ``jaxdqn.types.TimeStep``. The environment must not write to
    them again.
    """

    def reset(self, seed: int) -> TimeStep:
        """Start an episode in every environment; equal seeds give equal episodes."""
        ...

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step every environment. ``actions`` is [E] int32."""
        ...

    def close(self) -> None:
        """Close the simulators and their processes."""
        ...


class DrawableEnvironment(VectorEnvironment, Protocol):
    """Single environment (E = 1) that can render its state."""

    def render(self) -> np.ndarray:
        """Return a frame of the current state, uint8 [height, width, 3]."""
        ...


class HostEnvironment(NamedTuple):
    """Environment on the host: its properties, and the functions that create it."""

    spec: EnvSpec
    make: Callable[[int], VectorEnvironment]
    """``make(E) -> VectorEnvironment``"""
    most_eval_envs: int = 32
    """Maximum number of environments in an evaluation; with more episodes, each plays several."""
    make_drawable: Callable[[], DrawableEnvironment] | None = None
    """``make_drawable() -> DrawableEnvironment``; None if the environment cannot render."""
    make_to_evaluate: Callable[[int], VectorEnvironment] | None = None
    """Like ``make``, for evaluations, where ``terminated`` must always end an episode. None if
    ``make`` already satisfies this."""
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    """Lowest and highest value of each element of an observation, [O]; None if unknown."""
    check_bounds: bool = False
    """True to raise an exception for observations outside of ``bounds``."""
    sticky_actions: float = 0.0
    """Probability of sticky actions that a wrapper has added; see ``with_sticky_actions_on_host``.
    """

    def to_evaluate(self) -> HostEnvironment:
        """Return the environment for evaluations."""
        return self if self.make_to_evaluate is None else self._replace(make=self.make_to_evaluate)


def time_step(
    obs: Any,
    reward: Any,
    terminated: Any,
    truncated: Any,
    first: Any,
    dtype: np.dtype,
    legal: Any = None,
) -> TimeStep:
    """Copy arrays into a time step of NumPy arrays with the dtypes of the contract.

    Without ``legal`` [E, A] the time step has no mask.
    """
    leaves: Any = (
        np.array(obs, dtype),
        np.array(reward, np.float32),
        *(np.array(flags, bool) for flags in (terminated, truncated, first)),
    )
    masks: Any = () if legal is None else np.array(legal, bool)
    return TimeStep(*leaves)._replace(legal=masks)


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
