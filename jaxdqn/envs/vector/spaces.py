"""Conversion of Gymnasium spaces to arrays of one shape and to one set of discrete actions.

Observations: a ``Box`` keeps its shape; uint8 and bool keep their dtype, other dtypes become
float32. A ``Discrete`` becomes one-hot bool. Any other space (``Dict``, ``Tuple``,
``MultiDiscrete``, ``MultiBinary``) is flattened by ``gymnasium.spaces.flatten`` to float32.

Actions: ``Discrete``, shifted by its start. ``MultiDiscrete`` and ``MultiBinary`` become one
discrete space of all combinations, in row-major order, with at most 1,024 elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

MOST_ACTIONS = 1024


class ObservationArrays(NamedTuple):
    """Conversion of the observations of a space to arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype
    convert_one: Callable[[Any], Any]
    """``convert_one(obs) -> array [O]`` for one environment"""
    convert: Callable[[Any, int], Any]
    """``convert(batch, E) -> array [E, O]`` for a batch from a Gymnasium vector environment"""
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    """Lowest and highest value of each element, [O]; None if they are those of ``dtype``."""


def observation_arrays(space: Any) -> ObservationArrays:
    """Return the conversion of the observations of a space to arrays.

    Raises:
      ValueError: if the space cannot be flattened to a fixed shape.
    """
    if isinstance(space, spaces.Box):
        kept = space.dtype in (np.dtype(np.uint8), np.dtype(bool))
        dtype = np.dtype(space.dtype) if kept else np.dtype(np.float32)
        return ObservationArrays(
            space.shape,
            dtype,
            lambda obs: obs,
            lambda batch, num_envs: batch,
            bounds=_bounds(space, dtype),
        )
    if isinstance(space, spaces.Discrete):
        start, size = int(space.start), int(space.n)

        def one_hot(obs: Any) -> Any:
            hot = np.asarray(obs)[..., None] - start == np.arange(size)
            if not hot.any(axis=-1).all():
                raise ValueError(f"observation {obs} is outside its space {space}")
            return hot

        return ObservationArrays(
            (size,), np.dtype(bool), one_hot, lambda batch, num_envs: one_hot(batch)
        )
    if not space.is_np_flattenable:
        raise ValueError(f"observation space {space}: must have a fixed size to be flattened")

    def flatten(obs: Any) -> Any:
        return spaces.flatten(space, obs)

    def flatten_all(batch: Any, num_envs: int) -> Any:
        return np.stack([flatten(_element(space, batch, index)) for index in range(num_envs)])

    shape, dtype = (spaces.flatdim(space),), np.dtype(np.float32)
    bounds = _bounds(spaces.flatten_space(space), dtype)
    return ObservationArrays(shape, dtype, flatten, flatten_all, bounds)


def _bounds(space: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest values of a ``Box``, rounded like its observations."""
    with np.errstate(over="ignore"):  # the largest float64 becomes infinite
        return space.low.astype(dtype), space.high.astype(dtype)


def _element(space: Any, batch: Any, index: int) -> Any:
    """Return the observation of environment ``index`` from a batch."""
    if isinstance(space, spaces.Dict):
        return {name: _element(part, batch[name], index) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            _element(part, values, index) for part, values in zip(space.spaces, batch, strict=True)
        )
    return batch[index]


class DiscreteActions(NamedTuple):
    """Set of discrete actions, and their conversion for the environment."""

    size: int
    convert: Callable[[np.ndarray], Any]
    """``convert(actions[E] int32) -> batch`` for a vector environment"""


def discrete_actions(space: Any) -> DiscreteActions:
    """Convert an action space to one set of discrete actions.

    Raises:
      ValueError: if the space is continuous, or has too many actions.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return DiscreteActions(int(space.n), lambda actions: actions.astype(np.int64) + start)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        if isinstance(space, spaces.MultiBinary):
            sizes, offsets = np.full(space.shape, 2), np.zeros(space.shape, int)
        else:
            sizes, offsets = np.asarray(space.nvec), np.asarray(space.start)
        count = math.prod(sizes.ravel().tolist())
        if count > MOST_ACTIONS:
            raise ValueError(
                f"action space {space}: must have at most {MOST_ACTIONS:,} combinations to be one "
                f"discrete space, not {count:,}"
            )

        def combination(actions: np.ndarray) -> Any:
            parts = np.stack(np.unravel_index(actions, sizes.ravel()), axis=-1)
            return (parts.reshape(len(actions), *sizes.shape) + offsets).astype(space.dtype)

        return DiscreteActions(count, combination)
    raise ValueError(
        f"action space {space}: must be discrete; choose a discrete version of the environment "
        "(continuous=False for some), or wrap it to take one of a few actions"
    )
