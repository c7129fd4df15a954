"""Environments that live on the device, under one contract: ``jaxdqn.types.Environment``."""

from typing import Any

from jaxdqn.envs.base import EpisodeState, make_environment
from jaxdqn.envs.gymnax import make_gymnax, names
from jaxdqn.types import Environment

__all__ = ["EpisodeState", "make", "make_environment", "make_gymnax", "names"]


def make(name: str, **kwargs: Any) -> Environment:
    """Build a registered environment by name, next-step autoreset included.

    Args:
        name: one of ``names()``.
        **kwargs: as ``make_gymnax`` takes them.

    Raises:
        ValueError: if there is no such environment (with the nearest names), if
            its actions are continuous, or if its data cannot be had.
    """
    return make_gymnax(name, **kwargs)
