"""Options of a run. Imports no JAX."""

from __future__ import annotations

SWEEPABLE = (
    "learning_rate", "gamma", "epsilon_start", "epsilon_end", "temperature", "huber_delta",
    "clip_value", "clip_norm", "target_tau", "priority_exponent", "importance_exponent",
    "entropy_temperature", "munchausen_scale", "munchausen_clip",
    "trace_decay",
)  # fmt: skip
"""Fields that are traced scalars of the step (``jaxdqn.types.Hyper``)."""


OF_REPLICAS = ("mapping", "average_every", "average_moments", "compression", "top_k_fraction")
"""Fields that say how replicas learn together; one alone has their defaults."""


OF_MANY = ("sweep", "num_seeds", "population", "devices", "model_devices", *OF_REPLICAS)
"""Fields whose defaults make of a configuration that of one learner on one device."""


def read_sweep(text: str) -> tuple[str, tuple[float, ...]]:
    """Return the name and the values in ``NAME=VALUE,VALUE,...``."""
    name, _, values = text.partition("=")
    return name.strip().lstrip("-").replace("-", "_"), tuple(map(float, values.split(",")))
