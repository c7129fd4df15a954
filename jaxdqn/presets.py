"""One configuration for each known result. Imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxdqn.config import Config, replace
from jaxdqn.validation import suggest

PRESETS: dict[str, Config] = {
    # The squared loss here and below: where most rows are far from a terminal one, the
    # Huber loss follows the median target, and values of tens or hundreds run away.
    "cartpole": Config(
        loss="squared",
        total_steps=600_000,
        batch_size=128,
        hidden_sizes=(64,),
        learning_rate=2e-3,
        target_period=20,
        epsilon_decay_steps=10_000,
        replay_capacity=19_200,
        warmup_steps=1_024,
        log_every=6_400,
        eval_every=6_400,
        solve_return=475.0,
        stop_when_solved=True,
    ),
    "acrobot": Config(
        env="Acrobot-v1",
        loss="squared",
        total_steps=300_000,
        n_step=3,
        learning_rate_schedule="linear",
        replay_capacity=51_200,
        warmup_steps=3_200,
        log_every=15_000,
        eval_every=30_000,
    ),
    # No action pays before the goal is found, and independent random ones never find it.
    "mountaincar": Config(
        env="MountainCar-v0",
        loss="squared",
        total_steps=600_000,
        n_step=5,
        hidden_sizes=(256, 256),
        learning_rate_schedule="linear",
        epsilon_repeat=0.9,
        epsilon_decay_steps=100_000,
        replay_capacity=102_400,
        warmup_steps=6_400,
        log_every=30_000,
        eval_every=60_000,
    ),
    "catch": Config(
        env="Catch-bsuite",
        loss="squared",
        total_steps=100_000,
        batch_size=64,
        hidden_sizes=(128,),
        target_period=50,
        epsilon_decay_steps=20_000,
        replay_capacity=32_000,
        eval_episodes=1_000,
    ),
    "deepsea": Config(
        env="DeepSea-bsuite",
        loss="squared",
        total_steps=200_000,
        batch_size=64,
        hidden_sizes=(128,),
        target_period=50,
        epsilon_end=0.1,
        replay_capacity=64_000,
        warmup_steps=6_400,
        eval_every=40_000,
    ),
    # One-hot positions and no hidden layer: a table. Slippery ice asks for averaging, so the
    # learning rate falls to zero and the replay keeps half of the run.
    "frozenlake": Config(
        env="FrozenLake-misc",
        loss="squared",
        total_steps=400_000,
        batch_size=256,
        gamma=0.995,
        hidden_sizes=(),
        learning_rate=5e-3,
        learning_rate_schedule="linear",
        epsilon_end=0.3,
        epsilon_decay_steps=100_000,
        replay_capacity=200_000,
        warmup_steps=6_400,
        log_every=40_000,
        eval_every=100_000,
        eval_episodes=1_000,
    ),
    "breakout": Config(
        env="Breakout-MinAtar",
        total_steps=1_000_000,
        batch_size=64,
        n_step=3,
        double=True,
        learning_rate=5e-4,
        target_period=250,
        epsilon_end=0.02,
        epsilon_decay_steps=200_000,
        replay_capacity=100_000,
        warmup_steps=5_120,
        log_every=25_000,
        eval_every=100_000,
    ),
}
"""One known result each; see docs/status.md for what each has been measured to reach."""


def preset(name: str, **overrides: Any) -> Config:
    """Return a preset's configuration with some fields replaced.

    Raises:
        ValueError: if there is no such preset, with the nearest names, or a
            field is unknown or its value refused.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: must be one of {suggest(name, list(PRESETS))}")
    return replace(PRESETS[name], **overrides)
