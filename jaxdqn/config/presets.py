"""Configurations: one for each known result, and one for each member of the family.

Imports no JAX.
"""

from __future__ import annotations

from typing import Any

from jaxdqn.config.config import Config, replace
from jaxdqn.config.former_names import warn_of_former_names
from jaxdqn.errors import suggest

TASKS: dict[str, Config] = {
    # The squared loss here and below: where most rows are far from a terminal one, the
    # Huber loss follows the median target, and values of tens or hundreds run away.
    "cartpole": Config(
        loss="squared",
        total_rows=600_000,
        batch_size=128,
        hidden_sizes=(64,),
        learning_rate=2e-3,
        target_period=20,
        epsilon_decay_rows=10_000,
        replay_capacity=19_200,
        warmup_rows=1_024,
        log_every=6_400,
        eval_every=6_400,
        solve_return=475.0,
        stop_when_solved=True,
    ),
    "acrobot": Config(
        env="Acrobot-v1",
        loss="squared",
        total_rows=300_000,
        n_step=3,
        learning_rate_schedule="linear",
        replay_capacity=51_200,
        warmup_rows=3_200,
        log_every=15_000,
        eval_every=30_000,
    ),
    # No action pays before the goal is found, and independent random ones never find it.
    "mountaincar": Config(
        env="MountainCar-v0",
        loss="squared",
        total_rows=600_000,
        n_step=5,
        hidden_sizes=(256, 256),
        learning_rate_schedule="linear",
        epsilon_repeat=0.9,
        epsilon_decay_rows=100_000,
        replay_capacity=102_400,
        warmup_rows=6_400,
        log_every=30_000,
        eval_every=60_000,
    ),
    "catch": Config(
        env="Catch-bsuite",
        loss="squared",
        total_rows=100_000,
        batch_size=64,
        hidden_sizes=(128,),
        target_period=50,
        epsilon_decay_rows=20_000,
        replay_capacity=32_000,
        eval_episodes=1_000,
    ),
    "deepsea": Config(
        env="DeepSea-bsuite",
        loss="squared",
        total_rows=200_000,
        batch_size=64,
        hidden_sizes=(128,),
        target_period=50,
        epsilon_end=0.1,
        replay_capacity=64_000,
        warmup_rows=6_400,
        eval_every=40_000,
    ),
    # One-hot positions and no hidden layer: a table. Slippery ice asks for averaging, so the
    # learning rate falls to zero and the replay keeps half of the run.
    "frozenlake": Config(
        env="FrozenLake-misc",
        loss="squared",
        total_rows=400_000,
        batch_size=256,
        gamma=0.995,
        hidden_sizes=(),
        learning_rate=5e-3,
        learning_rate_schedule="linear",
        epsilon_end=0.3,
        epsilon_decay_rows=100_000,
        replay_capacity=200_000,
        warmup_rows=6_400,
        log_every=40_000,
        eval_every=100_000,
        eval_episodes=1_000,
    ),
    # What is shown at the start is asked for six steps later; in between nothing tells.
    "memorychain": Config(
        env="MemoryChain-bsuite",
        loss="squared",
        recurrent="lstm",
        recurrent_size=32,
        total_rows=150_000,
        batch_size=32,
        hidden_sizes=(32,),
        target_period=50,
        epsilon_decay_rows=30_000,
        replay_capacity=32_000,
        warmup_rows=1_600,
        log_every=10_000,
        eval_every=20_000,
        eval_episodes=1_000,
    ),
    "breakout": Config(
        env="Breakout-MinAtar",
        total_rows=1_000_000,
        batch_size=64,
        n_step=3,
        double=True,
        learning_rate=5e-4,
        target_period=250,
        epsilon_end=0.02,
        epsilon_decay_rows=200_000,
        replay_capacity=100_000,
        warmup_rows=5_120,
        log_every=25_000,
        eval_every=100_000,
    ),
}
"""One known result each; see docs/status.md for what each has been measured to reach."""

_RAINBOW: dict[str, dict[str, Any]] = {
    "double": {"double": True},
    "dueling": {"dueling": True},
    "n-step": {"n_step": 3},
    "per": {"replay": "prioritized"},
    "c51": {"loss": "categorical"},
    # By noise alone: without epsilon.
    "noisy": {"noisy": True, "epsilon_schedule": "constant", "epsilon_end": 0.0},
}
"""The six parts of Rainbow (Hessel et al. 2018), each a member of the family of its own."""


def _rainbow(without: str | None = None) -> dict[str, Any]:
    parts = (part for name, part in _RAINBOW.items() if name != without)
    return {field: value for part in parts for field, value in part.items()}


ABLATIONS: dict[str, dict[str, Any]] = {f"rainbow-no-{name}": _rainbow(name) for name in _RAINBOW}
"""Rainbow without each of its parts."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "dqn": {},
    **_RAINBOW,
    "qr-dqn": {"loss": "quantile"},
    "iqn": {"loss": "implicit_quantile"},
    "munchausen": {"bootstrap": "munchausen"},
    "rainbow": _rainbow(),
    **ABLATIONS,
    "pqn": {"algorithm": "pqn"},
    "recurrent": {"recurrent": "lstm"},
    "fast": {},
}
"""What each member of the family changes in plain DQN."""

# The authors' settings, but for the reward scale of 0.1 that they have on CartPole, and for the
# length of the run on MinAtar.
_PQN: dict[str, Any] = {
    "algorithm": "pqn",
    "loss": "squared",
    "optimizer": "radam",
    "learning_rate_schedule": "linear",
    "clip_norm": 10.0,
    "layer_norm": True,
}
_PQN_TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "num_envs": 32,
        "rollout_length": 64,
        "minibatches": 16,
        "epochs": 4,
        "trace_decay": 0.95,
        "learning_rate": 1e-4,
        "hidden_sizes": (256, 256),
        "total_rows": 500_000,
        "epsilon_end": 0.2,
        "epsilon_decay_rows": 100_000,
        "log_every": 10_240,
        "eval_every": 20_480,
        "solve_return": 475.0,
        "stop_when_solved": True,
    },
    "MinAtar": {
        "num_envs": 128,
        "rollout_length": 32,
        "minibatches": 32,
        "epochs": 2,
        "trace_decay": 0.65,
        "learning_rate": 5e-4,
        "total_rows": 5_000_000,
        "epsilon_decay_rows": 500_000,
        "log_every": 81_920,
        "eval_every": 500_000,
    },
}

# Found on two CPU cores, by the seconds that Breakout takes to a return of 10: 11 and 11 (two
# seeds), where the breakout preset takes 23 and 21, PQN 24 and 13.
_FAST: dict[str, Any] = {
    "num_envs": 64,
    "batch_size": 64,
    "n_step": 3,
    "double": True,
    "learning_rate": 1e-3,
    "epsilon_decay_rows": 50_000,
    "replay_capacity": 102_400,
}

_PLAIN: dict[str, Any] = {
    "double": False,
    "n_step": 1,
    "recurrent": "none",
    "recurrent_size": Config.recurrent_size,
}
_RETURNS = {
    "CartPole-v1": (0.0, 100.0),
    "Acrobot-v1": (-100.0, 0.0),
    "MountainCar-v0": (-100.0, 0.0),
    "MinAtar": (0.0, 30.0),
}
"""Range of discounted returns, for distributions on fixed atoms; of others that of the paper."""


def for_task(algorithm: str, env: str) -> Config:
    """Return a member of the family with the settings of a task's preset, or of one like it.

    Raises:
        ValueError: if there is no such algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"algorithm={algorithm!r}: must be one of {suggest(algorithm, list(ALGORITHMS))}"
        )
    if algorithm == "pqn":
        task = _PQN_TASKS["MinAtar" if env.endswith("-MinAtar") else "CartPole-v1"]
        if env not in _PQN_TASKS and not env.endswith("-MinAtar"):
            task = {**task, "solve_return": None, "stop_when_solved": False}
        return Config(**{**_PQN, **task, "env": env})
    like = {config.env: config for config in TASKS.values()}
    base = like.get(env, like["Breakout-MinAtar"] if env.endswith("-MinAtar") else Config())
    if algorithm == "fast":
        return replace(base, env=env, **(_FAST if env.endswith("-MinAtar") else {}))
    plain = _PLAIN if algorithm != "recurrent" or base.recurrent == "none" else {}
    values = {"env": env, **plain, **ALGORITHMS[algorithm]}
    if algorithm == "recurrent" and base.recurrent == "none":
        values["batch_size"] = max(1, base.batch_size // 8)  # of sequences
    wide = _RETURNS.get(env, (0.0, 0.0))
    if values.get("loss") in ("quantile", "implicit_quantile") and wide[1] - wide[0] >= 100:
        # With a delta of 1 errors of values near 100 all pull alike, and values run away.
        values |= {"huber_delta": 10.0, "quantiles": 8}
    if values.get("loss") == "categorical":
        family = "MinAtar" if env.endswith("-MinAtar") else env
        bounds = _RETURNS.get(family)
        if bounds is not None:
            values |= {"value_min": bounds[0], "value_max": bounds[1]}
    return replace(base, **values)


PRESETS: dict[str, Config] = TASKS | {name: for_task(name, "CartPole-v1") for name in ALGORITHMS}
"""The tasks, and the algorithms on CartPole; ``preset`` gives these for other environments."""


def preset(name: str, **overrides: Any) -> Config:
    """Return a preset's configuration with some fields replaced.

    That of an algorithm (``rainbow``) has the settings of the environment's task.

    Raises:
        ValueError: if there is no such preset, with the nearest names, or a
            field is unknown or its value refused.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: must be one of {suggest(name, list(PRESETS))}")
    overrides = warn_of_former_names(overrides, stacklevel=2)
    config = PRESETS[name]
    if name in ALGORITHMS and isinstance(overrides.get("env"), str):
        config = for_task(name, overrides["env"])
    return replace(config, **overrides)
