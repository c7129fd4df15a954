"""Gymnax environments with the contract of ``jaxdqn.types.Environment``.

Importing gymnax is slow, so it is imported only when an environment is made. The plotting libraries
seaborn and pyplot take three quarters of its import time and are imported only for gymnax's own
rendering.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.envs.arguments import changed_arguments, replace_params, split_arguments
from jaxdqn.envs.base import Render, with_autoreset
from jaxdqn.errors import known_name
from jaxdqn.lazy_modules import import_matplotlib, imported_lazily
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
"""Environments with observations of zeros and ones; they become bool, which the replay packs."""

DRAWABLE = frozenset(
    {
        *(BINARY - {"SimpleBandit-bsuite"}),
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "FourRooms-misc",
        "MetaMaze-misc",
        "FrozenLake-misc",
    }
)
"""Environments with a ``render`` function."""


def import_gymnax() -> ModuleType:
    """Import gymnax without the plotting libraries that it needs only for rendering.

    They remain importable, and gymnax loads them when it renders.
    """
    import_matplotlib()
    if "gymnax" not in sys.modules:
        # gymnax creates arrays during its import.
        with (
            jax.transfer_guard("allow"),
            jax.enable_x64(_process_uses_x64()),
            imported_lazily("matplotlib.pyplot", "seaborn"),
        ):
            importlib.import_module("gymnax")
    return importlib.import_module("gymnax")  # waits if another thread imports it


def _process_uses_x64() -> bool:
    """Return the process's setting of ``jax_enable_x64``, without a context of the caller.

    Contexts are local to a thread, and the arrays of an imported module last longer.
    """
    with ThreadPoolExecutor(1) as pool:
        return bool(pool.submit(jax.config.read, "jax_enable_x64").result())


def names() -> list[str]:
    """Return the names of the registered environments with discrete actions."""
    gymnax = import_gymnax()
    return [name for name in gymnax.registered_envs if name not in CONTINUOUS]


def make_gymnax(
    name: str, *, params: Mapping[str, Any] | None = None, **env_kwargs: Any
) -> Environment:
    """Build a gymnax environment with next-step autoreset.

    It uses gymnax's ``step_env``, ``reset_env`` and ``is_truncated``, because gymnax's ``step``
    resets within the step that ends an episode. Binary observations become bool, indices of
    discrete states become one-hot bool, and all others float32. The gymnax state is
    ``env_state.inner``.

    Args:
        name: one of ``names()``.
        params: gymnax parameters of the environment to replace, such as
            ``{"max_steps_in_episode": 50}``.
        **env_kwargs: arguments of the environment's constructor.

    Raises:
        ValueError: if the name (the message lists the nearest names) or an argument is unknown, or
            if the environment has continuous actions or needs data that cannot be downloaded.
    """
    with jax.transfer_guard("allow"):
        env, env_params = load(name, params=params, **env_kwargs)
        return _wrap(name, env, env_params, changed_arguments(env, env_params, env_kwargs))


def make_from_arguments(name: str, arguments: Mapping[str, Any]) -> Environment:
    """Build a gymnax environment from arguments by name, for its parameters and its constructor.

    Raises:
        ValueError: as ``make_gymnax``.
    """
    params, constructor = split_arguments(load(name)[0], arguments) if arguments else ({}, {})
    return make_gymnax(name, params=params, **constructor)


def as_environment(environment: Any) -> Environment:
    """Convert an object to an ``Environment``; a gymnax environment is wrapped.

    Args:
        environment: an ``Environment``, a gymnax environment, or a pair of a gymnax environment
            and its parameters, as returned by ``gymnax.make``.

    Raises:
        ValueError: if the object is none of these, or its actions are continuous.
    """
    if isinstance(environment, Environment):
        return environment
    pair = environment if isinstance(environment, tuple) else (environment, None)
    if not is_gymnax(environment):
        raise ValueError(
            f"environment={type(environment).__name__}: must be a jaxdqn Environment, a gymnax "
            "environment, a pair (gymnax environment, its parameters), or for a Gymnasium "
            "environment from_gymnasium(make, name)"
        )
    env, env_params = pair
    env_params = env.default_params if env_params is None else env_params
    name = env.name if type(env).__module__.startswith("gymnax.") else type(env).__name__
    with permissive_promotion():
        _require_discrete("environment", name, env.action_space(env_params))
    return _wrap(name, env, env_params, changed_arguments(env, env_params, {}))


def is_gymnax(environment: Any) -> bool:
    """Return True for a gymnax environment, or a pair of an environment and its parameters."""
    module = sys.modules.get("gymnax.environments.environment")
    if module is None:  # gymnax is not imported, so there is no such object
        return False
    if type(environment) is tuple and len(environment) == 2:
        environment = environment[0]
    return isinstance(environment, module.Environment)


def _wrap(name: str, env: Any, env_params: Any, arguments: tuple[str, ...]) -> Environment:
    """Wrap a gymnax environment with next-step autoreset."""

    def reset(key: Array) -> tuple[Any, Array]:
        with permissive_promotion():
            obs, state = env.reset_env(key, env_params)
            return state, obs

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        with permissive_promotion():
            obs, state, reward, terminated, _ = env.step_env(key, state, action, env_params)
            return state, obs, reward, terminated, env.is_truncated(state, env_params)

    environment = with_autoreset(
        reset,
        step,
        name=name,
        num_actions=int(env.action_space(env_params).n),
        max_episode_steps=int(env_params.max_steps_in_episode),
        view=_view(name, env, env_params),
        render=_render(name, env, env_params) if name in DRAWABLE else None,
    )
    return environment._replace(spec=environment.spec._replace(arguments=arguments))


def _render(name: str, env: Any, env_params: Any) -> Render:
    """Return the render function of an environment; it imports Pillow at its first use."""

    @functools.cache
    def draw() -> Render:
        from jaxdqn.envs.render import make_render

        return make_render(name, env, env_params)

    return lambda state: draw()(state)


def load(
    name: str, *, params: Mapping[str, Any] | None = None, **env_kwargs: Any
) -> tuple[Any, Any]:
    """Return the gymnax environment and its parameters for ``make_gymnax``.

    Raises:
        ValueError: as ``make_gymnax``.
    """
    gymnax = import_gymnax()
    if name not in gymnax.registered_envs:
        raise ValueError(f"env={name!r}: must be {_known(name)}")
    with permissive_promotion():
        try:
            env, env_params = gymnax.make(name, **env_kwargs)
        except (OSError, EOFError) as error:
            raise ValueError(f"env={name!r}: its data could not be downloaded: {error}") from error
        except (TypeError, AssertionError) as error:
            raise ValueError(f"env={name!r}: must have valid arguments: {error!r}") from error
        space = env.action_space(env_params)
    _require_discrete("env", name, space)
    return env, replace_params(name, env_params, params or {})


def _known(name: str) -> str:
    """Describe the valid names for an error: the nearest names, or the kinds of names."""
    near = known_name("environment", name, names())
    if "nearest" in near:
        return near
    return (
        "a gymnax environment (classic control as CartPole-v1, MinAtar as Breakout-MinAtar, bsuite "
        "as Catch-bsuite, or misc as FourRooms-misc) or your own, given as environment; an "
        f"environment of Gymnasium runs on the host, by the name gymnasium:{name}"
    )


def _require_discrete(argument: str, name: str, space: Any) -> None:
    from gymnax.environments import spaces

    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"{argument}={name!r}: must have discrete actions, not "
            f"{type(space).__name__}{space.shape}"
        )


@contextmanager
def permissive_promotion() -> Iterator[None]:
    """Allow the implicit dtype and rank promotion on which the code of gymnax relies."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _view(name: str, env: Any, env_params: Any) -> Callable[[Array], Array]:
    """Return the conversion of a gymnax observation to a fixed dtype, bool or float32."""
    from gymnax.environments import spaces

    with permissive_promotion():
        space = env.observation_space(env_params)
    if isinstance(space, spaces.Discrete):
        return lambda obs: jnp.arange(space.n, dtype=obs.dtype) == obs
    if name in BINARY:
        return lambda obs: obs.astype(bool)
    return lambda obs: obs.astype(jnp.float32)
