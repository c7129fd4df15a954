"""Traced hyper-parameters of a configuration."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.types import Array, Hyper

_DISABLED = math.inf


def hyper_from(config: Config) -> Hyper:
    """Return the sweepable options of a configuration as float32 arrays [].

    An option that is None, such as ``clip_norm``, becomes infinity.
    """

    def scalar(value: float | None) -> Array:
        return jnp.float32(_DISABLED if value is None else value)

    return Hyper(**{name: scalar(getattr(config, name)) for name in Hyper._fields})
