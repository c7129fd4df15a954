"""Environments on the device, all with the contract of ``jaxdqn.types.Environment``."""

from typing import Any

from jaxdqn.envs.base import EpisodeState, make_environment
from jaxdqn.envs.gymnax import make_gymnax, names
from jaxdqn.types import Environment

__all__ = ["EpisodeState", "make", "make_environment", "make_gymnax", "names"]


def make(name: str, **kwargs: Any) -> Environment:
    """Build a registered environment by name, with next-step autoreset.

    Args:
        name: one of ``names()``.
        **kwargs: keyword arguments of ``make_gymnax``.

    Raises:
        ValueError: if the name is unknown (the message lists the nearest names), its
            actions are continuous, or its data cannot be downloaded.
    """
    return make_gymnax(name, **kwargs)
