"""Presets: a configuration for each task, and the changes to it that make each algorithm.

Imports no JAX.
"""

from __future__ import annotations

from typing import Any

from jaxdqn.config.config import Config, replace
from jaxdqn.config.former_names import warn_of_former_names
from jaxdqn.config.host_envs import is_atari
from jaxdqn.config.host_presets import BTR_ATARI, HOST_TASKS, PQN_ATARI
from jaxdqn.config.protocols import PROTOCOLS, is_minatar, protocol_fields
from jaxdqn.errors import known_name

# The squared loss here and below: if most rows are far from the end of an episode, the Huber loss
# follows the median target, and values of tens or hundreds diverge.
_CARTPOLE = Config(
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
    stop_when="solved",
)
"""Settings of the algorithms on CartPole. Plain DQN soon reaches the solve return, but does not
hold it."""

TASKS: dict[str, Config] = {
    # Layer norm, returns of eight steps, a larger replay and a learning rate that falls to zero
    # make the policy hold the return of 475; docs/results/held.md has the study.
    "cartpole": replace(
        _CARTPOLE,
        num_envs=64,
        n_step=8,
        layer_norm=True,
        learning_rate=6e-3,
        learning_rate_schedule="cosine",
        epsilon_end=0.01,
        replay_capacity=51_200,
        warmup_rows=2_048,
        stop_when="held",
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
    # Rewards do not depend on actions until the goal is found, and independent random actions do
    # not find it: epsilon_repeat makes random behaviour persist.
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
    # One-hot positions and no hidden layer: a table. The transitions are random and need
    # averaging, so the learning rate falls to zero and the replay holds half of the run.
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
    # The first observation determines the right action six steps later, and the observations in
    # between carry no information.
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
        **PROTOCOLS["minatar"],
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
    # The maximum return is 11; random actions reach -3.5. A ball takes 19 steps to the bat, so a
    # discount of 0.97 and 5-step returns are enough.
    "pixels": Config(
        env="pixels:bat-and-ball",
        loss="squared",
        frame_stack=4,
        network="nature",
        total_rows=100_000,
        num_envs=32,
        batch_size=32,
        gamma=0.97,
        n_step=5,
        learning_rate=3e-4,
        learning_rate_schedule="linear",
        target_period=200,
        epsilon_end=0.02,
        epsilon_decay_rows=40_000,
        replay_capacity=32_000,
        warmup_rows=3_200,
        log_every=6_400,
        eval_every=25_600,
        eval_episodes=32,
        solve_return=9.9,
        stop_when="solved",
    ),
    **HOST_TASKS,
}
"""Preset of each task; docs/status.md has the measured results."""

_RAINBOW: dict[str, dict[str, Any]] = {
    "double": {"double": True},
    "dueling": {"dueling": True},
    "n-step": {"n_step": 3},
    "per": {"replay": "prioritized"},
    "c51": {"loss": "categorical"},
    # Exploration by noise only: epsilon is 0.
    "noisy": {"noisy": True, "epsilon_schedule": "constant", "epsilon_end": 0.0},
}
"""The six components of Rainbow (Hessel et al. 2018); each is also an algorithm."""


def _rainbow(without: str | None = None) -> dict[str, Any]:
    components = (fields for name, fields in _RAINBOW.items() if name != without)
    values = {field: value for fields in components for field, value in fields.items()}
    # Table 1 of the paper: Adam's epsilon, and the exponent of the priorities, which is 0.6 in
    # Schaul et al. 2016. Its learning rate, target period and range of returns are for Atari;
    # here they are those of the task.
    values["optimizer_epsilon"] = 1.5e-4
    if without != "per":
        values["priority_exponent"] = 0.5
    return values


ABLATIONS: dict[str, dict[str, Any]] = {f"rainbow-no-{name}": _rainbow(name) for name in _RAINBOW}
"""Rainbow without one of its components."""

# Mnih et al. 2015, extended data table 1: optimiser, minibatch, a gradient step every four rows,
# final epsilon. The published code divides gradients summed over the minibatch of 32 by the root of
# their variance plus 0.01. Here gradients are averaged, so 0.01 / 32**2 gives the same quotient.
# Loss, replay, periods and network are those of the task: the published Huber loss needs rewards
# in [-1, 1], and diverges on CartPole.
_DQN_2015: dict[str, Any] = {
    "optimizer": "rmsprop",
    "rmsprop_centered": True,
    "rmsprop_decay": 0.95,
    "optimizer_epsilon": 0.01 / 32**2,
    "learning_rate": 2.5e-4,
    "learning_rate_schedule": "constant",
    "batch_size": 32,
    "replay_ratio": 8.0,
    "epsilon_end": 0.1,
}

# "Beyond the Rainbow" (Clark et al. 2024): Rainbow without double Q-learning, with IQN instead of
# C51, and with Munchausen. On Atari the sizes, periods and learning rate are those of the paper;
# elsewhere they are those of the task. In the paper beta stays at 0.45; here it rises to 1, as with
# every algorithm.
BTR: dict[str, Any] = {
    "loss": "implicit_quantile",
    "quantiles": 8,
    "bootstrap": "munchausen",
    "n_step": 3,
    "replay": "prioritized",
    "priority_exponent": 0.2,
    "importance_exponent": 0.45,
    "dueling": True,
    "noisy": True,
    "clip_norm": 10.0,
}
_BTR_TORSO: dict[str, Any] = {
    "network": "impala",
    "torso_width": 2,
    "pool_size": 6,
    "spectral_norm": True,
    "dense_size": 512,
}
"""Network of the paper, for frames of 84x84."""

ALGORITHMS: dict[str, dict[str, Any]] = {
    "dqn": {},
    "dqn-2015": _DQN_2015,
    **_RAINBOW,
    "qr-dqn": {"loss": "quantile"},
    "iqn": {"loss": "implicit_quantile"},
    "munchausen": {"bootstrap": "munchausen"},
    "rainbow": _rainbow(),
    **ABLATIONS,
    "btr": BTR,
    "pqn": {"algorithm": "pqn"},
    # The exponents of the authors (Kapturowski et al. 2019).
    "recurrent": {
        "recurrent": "lstm",
        "replay": "prioritized",
        "priority_exponent": 0.9,
        "importance_exponent": 0.6,
    },
    "fast": {},
}
"""Fields that each algorithm changes in plain DQN."""

# Settings of the authors (Gallici et al. 2024), except their reward scale of 0.1 on CartPole and
# their budget on MinAtar.
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
        "stop_when": "solved",
    },
    "MinAtar": {
        **PROTOCOLS["minatar"],
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
    "Atari": PQN_ATARI,
    "pixels:bat-and-ball": {
        "frame_stack": 4,
        "network": "nature",
        "num_envs": 32,
        "rollout_length": 16,
        "minibatches": 8,
        "epochs": 2,
        "gamma": 0.97,
        "trace_decay": 0.8,
        "learning_rate": 5e-4,
        "total_rows": 100_000,
        "epsilon_end": 0.02,
        "epsilon_decay_rows": 40_000,
        "log_every": 6_144,
        "eval_every": 24_576,
        "eval_episodes": 32,
        "solve_return": 9.9,
        "stop_when": "solved",
    },
}

# Tuned on two CPU cores for the time to a return of 10 on Breakout without sticky actions. Two
# seeds took 11 and 11 s; the breakout preset took 23 and 21 s, and PQN 24 and 13 s.
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
"""Range of discounted returns, for distributions on fixed atoms. For other environments it is that
of the paper (Bellemare et al. 2017), -10 to 10."""


def for_task(algorithm: str, env: str) -> Config:
    """Return an algorithm with the settings of the preset of a task.

    An environment without a preset gets the settings of Breakout if it is a MinAtar game, those of
    Pong if it is an Atari game, and the defaults otherwise.

    Raises:
        ValueError: if the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        wanted = known_name("algorithm", algorithm, list(ALGORITHMS))
        raise ValueError(f"algorithm={algorithm!r}: must be {wanted}")
    if algorithm == "pqn":
        return _pqn(env)
    by_env = {config.env: config for config in TASKS.values()}
    by_env |= {config.env: config for config in (_CARTPOLE, TASKS["atari"])}
    games = {"Breakout-MinAtar": is_minatar(env), TASKS["atari"].env: is_atari(env)}
    default = next((by_env[name] for name, like in games.items() if like), Config())
    base = by_env.get(env, default)
    if algorithm == "fast":
        return replace(base, env=env, **(_FAST if is_minatar(env) else {}))
    becomes_recurrent = algorithm == "recurrent" and base.recurrent == "none"
    plain = _PLAIN if algorithm != "recurrent" or becomes_recurrent else {}
    values = {"env": env, **plain, **ALGORITHMS[algorithm]}
    if becomes_recurrent:
        # A batch counts sequences, which have several rows each.
        values |= {"batch_size": max(1, base.batch_size // 8), "frame_stack": 1}
    if algorithm == "btr":
        values |= _btr(env)
    return replace(base, **{**values, **_distribution(values.get("loss"), env)})


def _btr(env: str) -> dict[str, Any]:
    """Return the network of BTR for pictures, and on Atari the settings of its authors."""
    if is_minatar(env):
        return {"network": "impala", "spectral_norm": True, "dense_size": 128}
    if is_atari(env):
        return {**_BTR_TORSO, **BTR_ATARI}
    return _BTR_TORSO if env == TASKS["pixels"].env else {}


def _pqn(env: str) -> Config:
    games = {"MinAtar": is_minatar(env), "Atari": is_atari(env)}
    game = next((name for name, like in games.items() if like), None)
    task = _PQN_TASKS.get(game or env, _PQN_TASKS["CartPole-v1"])
    if env not in _PQN_TASKS and game is None:
        task = {**task, "solve_return": None, "stop_when": "never"}
    return Config(**{**_PQN, **task, "env": env})


def _distribution(loss: str | None, env: str) -> dict[str, Any]:
    """Return the options of a distributional loss that fit the range of returns."""
    low_high = _RETURNS.get("MinAtar" if is_minatar(env) else env)
    if low_high is None:
        return {}
    low, high = low_high
    if loss == "categorical":
        return {"value_min": low, "value_max": high}
    if loss in ("quantile", "implicit_quantile") and high - low >= 100:
        # With values near 100 most errors exceed a delta of 1 and have equal gradients, so that
        # values diverge.
        return {"huber_delta": 10.0, "quantiles": 8}
    return {}


PRESETS: dict[str, Config] = TASKS | {name: for_task(name, "CartPole-v1") for name in ALGORITHMS}
"""The tasks, and the algorithms on CartPole. ``preset`` also builds the algorithms for other
environments."""


def preset(name: str, *, protocol: str | None = None, **overrides: Any) -> Config:
    """Return the configuration of a preset with some fields replaced.

    An algorithm, such as ``rainbow``, has the settings of the task of the environment.

    Args:
        name: one of ``PRESETS``.
        protocol: one of ``PROTOCOLS``, of a MinAtar game; by default ``minatar``.
        **overrides: fields to replace.

    Raises:
        ValueError: if the preset or the protocol is unknown, with the nearest names, or if a field
            is unknown or its value invalid.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: must be {known_name('preset', name, list(PRESETS))}")
    overrides = warn_of_former_names(overrides, stacklevel=2)
    config = PRESETS[name]
    if name in ALGORITHMS and isinstance(overrides.get("env"), str):
        config = for_task(name, overrides["env"])
    return replace(
        config, **{**protocol_fields(protocol, overrides.get("env", config.env)), **overrides}
    )
