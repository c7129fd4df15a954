"""Presets: a configuration for each task, and for each algorithm with a task's settings.

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
    """Return the configuration of an algorithm, with the settings of the task of an environment.

    If ``env`` has no preset, a MinAtar game gets the settings of Breakout, an Atari game those of
    Pong, Craftax with symbolic observations those of Craftax, and any other environment the
    defaults. PQN has settings of its authors for MinAtar, Atari and Craftax, and those for CartPole
    as its defaults.

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
        # ``batch_size`` now counts sequences of several rows.
        values |= {"batch_size": max(1, base.batch_size // 8), "frame_stack": 1}
    if algorithm == "btr":
        values |= _btr(env)
    return replace(base, **{**values, **_distribution(values.get("loss"), env)})


def _btr(env: str) -> dict[str, Any]:
    """Return BTR's network for pictures, and for Atari also its authors' other settings."""
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
    """Return the options with which a distributional loss fits the range of returns of ``env``."""
    low_high = RETURNS.get("MinAtar" if is_minatar(env) else env)
    if low_high is None:
        return {}
    low, high = low_high
    if loss == "categorical":
        return {"value_min": low, "value_max": high}
    if loss in ("quantile", "implicit_quantile") and high - low >= 100:
        # With values near 100 most errors exceed a delta of 1 and have equal gradients, so values
        # diverge.
        return {"huber_delta": 10.0, "quantiles": 8}
    return {}


PRESETS: dict[str, Config] = TASKS | {name: for_task(name, "CartPole-v1") for name in ALGORITHMS}
"""Configurations of the tasks, and of the algorithms on CartPole. ``preset`` also configures the
algorithms for other environments."""


def preset(name: str, *, protocol: str | None = None, **overrides: Any) -> Config:
    """Return the configuration of a preset with some fields replaced.

    The preset of an algorithm, such as ``rainbow``, depends on ``env``: see ``for_task``.

    Args:
        name: one of ``PRESETS``.
        protocol: a key of ``PROTOCOLS``, for MinAtar games only; their default is ``minatar``.
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
