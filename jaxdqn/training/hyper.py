"""Traced hyper-parameters of a configuration."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.types import Array, Hyper

_DISABLED = 3.4e38
"""Value of an option that is None: near the float32 maximum, because infinity would abort a run
under ``jax_debug_infs``."""


def hyper_from(config: Config) -> Hyper:
    """Return the sweepable options and custom scalars of a configuration, each float32 [].

    An option that is None, such as ``clip_norm``, becomes 3.4e38.
    """

    def scalar(value: float | None) -> Array:
        return jnp.float32(_DISABLED if value is None else value)

    extra = {name: scalar(value) for name, value in config.extra_scalars.items()}
    return Hyper(**{name: scalar(getattr(config, name)) for name in SWEEPABLE}, extra=extra)


def with_values(hyper: Hyper, values: Mapping[str, float]) -> Hyper:
    """Return hyper-parameters with the named fields or custom scalars replaced."""
    scalars = {name: jnp.float32(value) for name, value in values.items()}
    extra = {name: scalars.pop(name, value) for name, value in hyper.extra.items()}
    return hyper._replace(**scalars, extra=extra)
