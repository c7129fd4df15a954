"""Configurations that the benchmarks measure. Imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxdqn.config.config import Config, replace

CARTPOLE = "CartPole-v1"
BREAKOUT = "Breakout-MinAtar"


def sized(
    env: str,
    *,
    num_envs: int,
    rollout_length: int = 1,
    gradient_steps: int = 1,
    batch_size: int = 128,
    **fields: Any,
) -> Config:
    """Return a configuration with these sizes, and valid values for fields that depend on them.

    The replay has about 32 thousand rows, and at least those of 16 iterations, unless
    ``replay_capacity`` is given.
    """
    per_add = num_envs * rollout_length
    capacity = max(32_768 // per_add, 16) * per_add
    warmup = max(1_024, batch_size, 2 * num_envs * fields.get("n_step", 1))
    fields = {"replay_capacity": capacity, "warmup_rows": warmup, **fields}
    fields.setdefault("total_rows", 100 * fields["replay_capacity"] + 2 * fields["warmup_rows"])
    return replace(
        Config(),
        env=env,
        num_envs=num_envs,
        rollout_length=rollout_length,
        gradient_steps=gradient_steps,
        batch_size=batch_size,
        **fields,
    )


def matched(env: str = CARTPOLE, **fields: Any) -> Config:
    """Return the workload of the peer comparison: E=10, K=1, M=1, B=128, MLP 120-84 on vectors."""
    return sized(env, **{"num_envs": 10, "hidden_sizes": (120, 84), **fields})
