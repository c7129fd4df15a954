"""Presets of algorithms, as changes to plain DQN. Imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxdqn.config.config import Config
from jaxdqn.config.craftax_presets import PQN_CRAFTAX
from jaxdqn.config.host_presets import PQN_ATARI
from jaxdqn.config.protocols import PROTOCOLS

_RAINBOW: dict[str, dict[str, Any]] = {
    "double": {"double": True},
    "dueling": {"dueling": True},
    "n-step": {"n_step": 3},
    "per": {"replay": "prioritized"},
    "c51": {"loss": "categorical"},
    # Exploration by noise only: epsilon is 0.
    "noisy": {"noisy": True, "epsilon_schedule": "constant", "epsilon_end": 0.0},
}
"""Components of Rainbow (Hessel et al. 2018). Each is also the preset of an algorithm."""


def _rainbow(without: str | None = None) -> dict[str, Any]:
    components = (fields for name, fields in _RAINBOW.items() if name != without)
    values = {field: value for fields in components for field, value in fields.items()}
    # Adam's epsilon and the exponent of the priorities are those of table 1 of the paper (Schaul et
    # al. 2016 have 0.6). The paper's learning rate, target period and range of returns are for
    # Atari; here the task determines them.
    values["optimizer_epsilon"] = 1.5e-4
    if without != "per":
        values["priority_exponent"] = 0.5
    return values


ABLATIONS: dict[str, dict[str, Any]] = {f"rainbow-no-{name}": _rainbow(name) for name in _RAINBOW}
"""Rainbow without one of its components."""

# Mnih et al. 2015, extended data table 1: optimiser, minibatch, a gradient step every four rows,
# final epsilon. The published code divides gradients summed over the minibatch of 32 by the root of
# (their variance + 0.01). Here gradients are averaged, so 0.01 / 32**2 gives the same quotient. The
# task determines loss, replay, periods and network: the published Huber loss needs rewards in
# [-1, 1], and diverges on CartPole.
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

# Horgan et al. 2018: epsilon of actor i of N is 0.4 ** (1 + 7 i / (N - 1)), from the start on. Here
# i counts environments, of which their actors have one each. Optimiser, sizes and periods are for
# Atari; here they are those of the task.
_APE_X: dict[str, Any] = {
    "double": True,
    "dueling": True,
    "n_step": 3,
    "replay": "prioritized",
    "priority_exponent": 0.6,
    "importance_exponent": 0.4,
    "epsilon_schedule": "constant",
    "epsilon_end": 0.4,
    "epsilon_ladder": 7.0,
}

# "Beyond the Rainbow" (Clark et al. 2024): Rainbow without double Q-learning, with IQN instead of
# C51, and with Munchausen. Sizes, periods and learning rate are the authors' on Atari, and the
# task's elsewhere. The authors' beta stays at 0.45; here it rises to 1 as with every algorithm.
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
BTR_TORSO: dict[str, Any] = {
    "network": "impala",
    "torso_width": 2,
    "pool_size": 6,
    "spectral_norm": True,
    "dense_size": 512,
}
"""The authors' network, for frames of 84x84."""

ALGORITHMS: dict[str, dict[str, Any]] = {
    "dqn": {},
    "dqn-2015": _DQN_2015,
    **_RAINBOW,
    "qr-dqn": {"loss": "quantile"},
    "iqn": {"loss": "implicit_quantile"},
    "munchausen": {"bootstrap": "munchausen"},
    "rainbow": _rainbow(),
    **ABLATIONS,
    "ape-x": _APE_X,
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
"""Changes of each algorithm to plain DQN, by field. ``PQN`` and ``FAST`` have further ones."""

# The authors' settings (Gallici et al. 2024) for CartPole and MinAtar, without their reward scale
# of 0.1 on CartPole and with another budget on MinAtar.
PQN: dict[str, Any] = {
    "algorithm": "pqn",
    "loss": "squared",
    "optimizer": "radam",
    "learning_rate_schedule": "linear",
    "clip_norm": 10.0,
    "layer_norm": True,
}
PQN_TASKS: dict[str, dict[str, Any]] = {
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
    "Craftax": PQN_CRAFTAX,
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

# Tuned on two CPU cores for the time to a return of 10 on Breakout without sticky actions: 11 and
# 11 s for two seeds, compared with 23 and 21 s for the breakout preset and 24 and 13 s for PQN.
FAST: dict[str, Any] = {
    "num_envs": 64,
    "batch_size": 64,
    "n_step": 3,
    "double": True,
    "learning_rate": 1e-3,
    "epsilon_decay_rows": 50_000,
    "replay_capacity": 102_400,
}

PLAIN: dict[str, Any] = {
    "double": False,
    "n_step": 1,
    "recurrent": "none",
    "recurrent_size": Config.recurrent_size,
}
RETURNS = {
    "CartPole-v1": (0.0, 100.0),
    "Acrobot-v1": (-100.0, 0.0),
    "MountainCar-v0": (-100.0, 0.0),
    "MinAtar": (0.0, 30.0),
}
"""Range of discounted returns by environment, for distributions on fixed atoms. Other environments
have the range of the paper (Bellemare et al. 2017), -10 to 10."""
