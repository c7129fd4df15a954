"""Traced hyper-parameters of a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.types import Array, Hyper

_DISABLED = math.inf


def hyper_from(config: Config) -> Hyper:
    """Return the sweepable options and custom scalars of a configuration as float32 arrays [].

    An option that is None, such as ``clip_norm``, becomes infinity.
    """

    def scalar(value: float | None) -> Array:
        return jnp.float32(_DISABLED if value is None else value)

    extra = {name: scalar(value) for name, value in config.extra_scalars.items()}
    return Hyper(**{name: scalar(getattr(config, name)) for name in SWEEPABLE}, extra=extra)


def with_values(hyper: Hyper, values: Mapping[str, float]) -> Hyper:
    """Return hyper-parameters with some values replaced, fields and custom scalars alike."""
    scalars = {name: jnp.float32(value) for name, value in values.items()}
    extra = {name: scalars.pop(name, value) for name, value in hyper.extra.items()}
    return hyper._replace(**scalars, extra=extra)
