"""Configurations that the accelerator benchmark measures. Imports no JAX."""

from __future__ import annotations

from typing import Any

from benchmarks.accelerator.plan import Sizes
from benchmarks.configs import BREAKOUT, CARTPOLE
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import preset

LARGEST_BATCH = 1_024


def with_envs(base: Config, num_envs: int) -> Config:
    """Return a configuration with a different number of environments.

    The batch grows in proportion, up to 1 024 rows, and the replay has at least 32 rows of each
    environment, so the work per environment is the same as in the preset. The number of minibatches
    of PQN is unchanged.
    """
    if base.algorithm == "pqn":
        return replace(base, num_envs=num_envs, **_budget(num_envs * base.rollout_length))
    per_add = num_envs * base.rollout_length
    batch = max(base.batch_size, min(LARGEST_BATCH, num_envs))
    fields: dict[str, Any] = {
        "num_envs": num_envs,
        "batch_size": batch,
        "replay_capacity": max(32, -(-base.replay_capacity // per_add)) * per_add,
        "warmup_rows": max(base.warmup_rows, batch, (base.reach + 1) * per_add),
    }
    return replace(base, **fields, **_budget(per_add, fields["warmup_rows"]))


def rate_configs(sizes: Sizes) -> dict[str, Config]:
    """Return the configurations of the section ``rates`` by the name of their cell."""
    shrunk = dict(sizes.shrunk)
    bases = {
        "cartpole dqn": _small(preset("cartpole"), sizes),
        "cartpole pqn": preset("pqn", **shrunk),
        "breakout dqn": _small(preset("dqn", env=BREAKOUT), sizes),
        "breakout fast": _small(preset("fast", env=BREAKOUT), sizes),
        "breakout pqn": preset("pqn", env=BREAKOUT, **shrunk),
    }
    # In ascending order, so that the peak memory is that of the current cell.
    return {
        f"{name} E={num_envs}": with_envs(base, num_envs)
        for num_envs in sizes.num_envs
        for name, base in bases.items()
    }


def population_configs(sizes: Sizes) -> dict[str, Config]:
    """Return CartPole learners in one program, by the name of their cell."""
    one = _small(preset("cartpole"), sizes)
    return {
        f"{learners} learners": replace(one, num_seeds=learners)
        if learners == 1
        else replace(one, num_seeds=learners, population="vmap")
        for learners in sizes.learners
    }


def replay_configs(sizes: Sizes) -> dict[str, Config]:
    """Return the configurations of the section ``replay`` by name.

    The first two differ only in their draws, with one gradient step per iteration. The other three,
    PQN as published and DQN with both replays, have equal rows, gradient steps and batches.
    """
    pqn = preset("pqn", env=BREAKOUT, **dict(sizes.shrunk))
    plain = _small(preset("dqn", env=BREAKOUT), sizes)
    per_add = pqn.num_envs * pqn.rollout_length
    as_pqn = replace(
        plain,
        num_envs=pqn.num_envs,
        rollout_length=pqn.rollout_length,
        gradient_steps=pqn.gradient_steps_per_iteration,
        batch_size=pqn.batch_per_device,
        replay_capacity=32 * per_add,
        warmup_rows=4 * per_add,
        **_budget(per_add, 4 * per_add),
    )
    return {
        "uniform": plain,
        "prioritized": replace(plain, replay="prioritized"),
        "uniform, work of pqn": as_pqn,
        "prioritized, work of pqn": replace(as_pqn, replay="prioritized"),
        "pqn": pqn,
    }


def memory_configs(sizes: Sizes) -> dict[str, Config]:
    """Return configurations with a large replay, and of PQN without a replay, by name."""
    found: dict[str, Config] = {}
    for name, env in (("cartpole", CARTPOLE), ("breakout", BREAKOUT)):
        base = _small(preset("dqn", env=env), sizes)
        rows = sizes.ring_rows // base.num_envs * base.num_envs
        found[f"{name}, {rows:,} rows"] = replace(
            base, replay_capacity=rows, **_budget(base.num_envs, base.warmup_rows)
        )
    found["breakout pqn"] = preset("pqn", env=BREAKOUT, **dict(sizes.shrunk))
    return found


def kernel_configs(sizes: Sizes) -> dict[str, Config]:
    """Return the configurations whose kernels are timed, by name."""
    return {
        "cartpole": _small(preset("cartpole"), sizes),
        "breakout fast": _small(preset("fast", env=BREAKOUT), sizes),
        "breakout pqn": preset("pqn", env=BREAKOUT, **dict(sizes.shrunk)),
    }


def _budget(rows_per_iteration: int, warmup_rows: int = 0) -> dict[str, int]:
    """Return a budget larger than any measurement, in chunks of some iterations."""
    return {
        "total_rows": 2 * warmup_rows + 100_000 * rows_per_iteration,
        "log_every": 10 * rows_per_iteration,
        "eval_every": 0,
    }


def _small(config: Config, sizes: Sizes) -> Config:
    """Return a configuration of DQN; if ``sizes`` are shrunk, it is small enough for a CPU."""
    if not sizes.shrunk:
        return config
    per_add = config.num_envs * config.rollout_length
    return replace(
        config, batch_size=16, replay_capacity=32 * per_add, warmup_rows=16 * per_add,
        eval_episodes=4,
    )  # fmt: skip
