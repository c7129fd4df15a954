"""Gymnax's environments under the contract of ``jaxdqn.types.Environment``.

gymnax takes seconds to import, so it is imported when an environment is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.envs.base import with_autoreset
from jaxdqn.errors import suggest
from jaxdqn.types import Array, Environment

CONTINUOUS = frozenset(
    {
        "Pendulum-v1",
        "MountainCarContinuous-v0",
        "PointRobot-misc",
        "Reacher-misc",
        "Swimmer-misc",
    }
)
"""Registered environments without discrete actions."""

BINARY = frozenset(
    {
        "Asterix-MinAtar",
        "Breakout-MinAtar",
        "Freeway-MinAtar",
        "Seaquest-MinAtar",
        "SpaceInvaders-MinAtar",
        "Catch-bsuite",
        "DeepSea-bsuite",
        "SimpleBandit-bsuite",
        "Pong-misc",
    }
)
"""Environments whose observations are zeros and ones, given as bool: a replay packs them."""


def names() -> list[str]:
    """Return the names of the registered environments with discrete actions."""
    import gymnax

    return [name for name in gymnax.registered_envs if name not in CONTINUOUS]


def make_gymnax(
    name: str, *, params: Mapping[str, Any] | None = None, **env_kwargs: Any
) -> Environment:
    """Build a gymnax environment with next-step autoreset.

    It is composed of gymnax's ``step_env``, ``reset_env`` and ``is_truncated``;
    gymnax's own ``step`` resets within the step that ends an episode.
    Observations are bool where they are binary or name one of finitely many
    states (then one-hot), float32 otherwise. The gymnax state is
    ``env_state.inner``.

    Args:
        name: one of ``names()``.
        params: fields of the environment's gymnax parameters to replace, such as
            ``{"max_steps_in_episode": 50}``.
        **env_kwargs: arguments of the environment's constructor.

    Raises:
        ValueError: if there is no such environment (with the nearest names), if
            its actions are continuous, if an argument is unknown, or if its data
            cannot be had.
    """
    env, env_params = load(name, params=params, **env_kwargs)

    def reset(key: Array) -> tuple[Any, Array]:
        with permissive_promotion():
            obs, state = env.reset_env(key, env_params)
            return state, obs

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        with permissive_promotion():
            obs, state, reward, terminated, _ = env.step_env(key, state, action, env_params)
            return state, obs, reward, terminated, env.is_truncated(state, env_params)

    return with_autoreset(
        reset,
        step,
        name=name,
        num_actions=int(env.action_space(env_params).n),
        max_episode_steps=int(env_params.max_steps_in_episode),
        view=_view(name, env, env_params),
    )


def load(
    name: str, *, params: Mapping[str, Any] | None = None, **env_kwargs: Any
) -> tuple[Any, Any]:
    """Return the gymnax environment and its parameters, as ``make_gymnax`` uses them.

    Raises:
        ValueError: as ``make_gymnax``.
    """
    import gymnax
    from gymnax.environments import spaces

    if name not in gymnax.registered_envs:
        raise ValueError(f"env={name!r}: must be one of {suggest(name, names())}")
    with permissive_promotion():
        try:
            env, env_params = gymnax.make(name, **env_kwargs)
        except (OSError, EOFError) as error:
            raise ValueError(f"env={name!r}: its data could not be downloaded: {error}") from error
        except (TypeError, AssertionError) as error:
            raise ValueError(f"env={name!r}: must have valid arguments: {error!r}") from error
        space = env.action_space(env_params)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"env={name!r}: must have discrete actions, not {type(space).__name__}{space.shape}"
        )
    return env, _replace_params(name, env_params, params or {})


@contextmanager
def permissive_promotion() -> Iterator[None]:
    """Trace gymnax's code, which promotes dtypes and ranks freely, as it was written."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _replace_params(name: str, env_params: Any, overrides: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(env_params)]
    values = {}
    for field, value in overrides.items():
        if field not in known:
            raise ValueError(
                f"params={field!r}: must be fields of {name}; nearest: {suggest(field, known)}"
            )
        # gymnax selects between parameters and states, which must then agree in dtype.
        values[field] = float(value) if isinstance(getattr(env_params, field), float) else value
    return env_params.replace(**values)


def _view(name: str, env: Any, env_params: Any) -> Callable[[Array], Array]:
    """Return what turns a gymnax observation into one of a fixed dtype, bool or float32."""
    from gymnax.environments import spaces

    with permissive_promotion():
        space = env.observation_space(env_params)
    if isinstance(space, spaces.Discrete):
        return lambda obs: jnp.arange(space.n, dtype=obs.dtype) == obs
    if name in BINARY:
        return lambda obs: obs.astype(bool)
    return lambda obs: obs.astype(jnp.float32)
