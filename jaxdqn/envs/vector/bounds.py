"""Check of observations against the bounds of their space: ``--check-bounds``."""

from __future__ import annotations

import numpy as np

from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import reject


def with_checked_bounds(environment: HostEnvironment) -> HostEnvironment:
    """Return the environment with ``check_bounds`` set.

    Raises:
      ValueError: if the environment declares no bounds.
    """
    if environment.bounds is None:
        name = environment.spec.name
        reject("check_bounds", True, f"False with env={name!r}, which declares no bounds")
    return environment._replace(check_bounds=True)


def check_bounds(obs: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]) -> None:
    """Check observations [E, ...] against their lowest and highest values [...].

    A NaN is not an error here; ``check_time_step`` rejects it.

    Raises:
      ValueError: naming the environment, the element, its value and its bounds.
    """
    low, high = bounds
    outside = (obs < low) | (obs > high)
    if outside.any():
        index, *element = (int(axis) for axis in np.argwhere(outside)[0])
        at = tuple(element)
        raise ValueError(
            f"environment {index} returned an observation whose element {element} is "
            f"{obs[(index, *at)]}, outside of the bounds {low[at]} and {high[at]} of its space"
        )
