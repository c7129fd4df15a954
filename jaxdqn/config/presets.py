"""Presets: a configuration for each task, and for each algorithm with the settings of a task.

Imports no JAX.
"""

from __future__ import annotations

from typing import Any

from jaxdqn.config.algorithm_presets import (
    ALGORITHMS,
    BTR_TORSO,
    FAST,
    PLAIN,
    PQN,
    PQN_TASKS,
    RETURNS,
)
from jaxdqn.config.config import Config, replace
from jaxdqn.config.craftax_presets import CRAFTAX, FAST_CRAFTAX, is_craftax
from jaxdqn.config.former_names import warn_of_former_names
from jaxdqn.config.host_envs import is_atari
from jaxdqn.config.host_presets import BTR_ATARI
from jaxdqn.config.protocols import is_minatar, protocol_fields
from jaxdqn.config.task_presets import CARTPOLE, TASKS
from jaxdqn.errors import known_name


def for_task(algorithm: str, env: str) -> Config:
    """Return an algorithm with the settings of the preset of a task.

    An environment without a preset gets the settings of Breakout if it is a MinAtar game, those of
    Pong if it is an Atari game, those of Craftax if it is Craftax with symbolic observations, and
    the defaults otherwise.

    Raises:
        ValueError: if the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        wanted = known_name("algorithm", algorithm, list(ALGORITHMS))
        raise ValueError(f"algorithm={algorithm!r}: must be {wanted}")
    if algorithm == "pqn":
        return _pqn(env)
    by_env = {config.env: config for config in TASKS.values()}
    by_env |= {config.env: config for config in (CARTPOLE, TASKS["atari"], CRAFTAX)}
    games = {
        "Breakout-MinAtar": is_minatar(env),
        TASKS["atari"].env: is_atari(env),
        CRAFTAX.env: is_craftax(env),
    }
    default = next((by_env[name] for name, like in games.items() if like), Config())
    base = by_env.get(env, default)
    if algorithm == "fast":
        fast = FAST if is_minatar(env) else FAST_CRAFTAX if is_craftax(env) else {}
        return replace(base, env=env, **fast)
    becomes_recurrent = algorithm == "recurrent" and base.recurrent == "none"
    plain = PLAIN if algorithm != "recurrent" or becomes_recurrent else {}
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
        return {**BTR_TORSO, **BTR_ATARI}
    return BTR_TORSO if env == TASKS["pixels"].env else {}


def _pqn(env: str) -> Config:
    games = {"MinAtar": is_minatar(env), "Atari": is_atari(env), "Craftax": is_craftax(env)}
    game = next((name for name, like in games.items() if like), None)
    task = PQN_TASKS.get(game or env, PQN_TASKS["CartPole-v1"])
    if env not in PQN_TASKS and game is None:
        task = {**task, "solve_return": None, "stop_when": "never"}
    return Config(**{**PQN, **task, "env": env})


def _distribution(loss: str | None, env: str) -> dict[str, Any]:
    """Return the options of a distributional loss that fit the range of returns."""
    low_high = RETURNS.get("MinAtar" if is_minatar(env) else env)
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
