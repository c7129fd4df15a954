"""Traced hyper-parameters of a configuration."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.types import Array, Hyper

_DISABLED = math.inf


def hyper_from(config: Config) -> Hyper:
    """Return the configuration's sweepable scalars, as float32 arrays."""

    def scalar(value: float | None) -> Array:
        return jnp.float32(_DISABLED if value is None else value)

    return Hyper(
        learning_rate=scalar(config.learning_rate),
        gamma=scalar(config.gamma),
        epsilon_start=scalar(config.epsilon_start),
        epsilon_end=scalar(config.epsilon_end),
        temperature=scalar(config.temperature),
        huber_delta=scalar(config.huber_delta),
        clip_value=scalar(config.clip_value),
        clip_norm=scalar(config.clip_norm),
        target_tau=scalar(config.target_tau),
        priority_exponent=scalar(config.priority_exponent),
        importance_exponent=scalar(config.importance_exponent),
        entropy_temperature=scalar(config.entropy_temperature),
        munchausen_scale=scalar(config.munchausen_scale),
        munchausen_clip=scalar(config.munchausen_clip),
        trace_decay=scalar(config.trace_decay),
    )
