"""Environments of Gymnasium on the host."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium

from jaxdqn.envs.vector import minatar
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.envs.vector.masks import has_mask
from jaxdqn.envs.vector.serial import SerialEnvironments
from jaxdqn.envs.vector.spaces import discrete_actions, observation_arrays
from jaxdqn.envs.vector.workers import WorkerEnvironments
from jaxdqn.types import EnvSpec

PREFIX = "gymnasium:"

_EXTRAS = {"highway_env": "driving", "ale_py": "host"}
"""Extra of jaxdqn that installs each module with environments."""


def gymnasium_environment(
    name: str, arguments: Mapping[str, Any], *, processes: bool = False
) -> HostEnvironment:
    """Return an environment registered with Gymnasium.

    Args:
      name: id of the environment; ``MODULE:ID`` first imports the module that registers it.
      arguments: keyword arguments of ``gymnasium.make``.
      processes: see ``from_gymnasium``.

    Raises:
      ValueError: if the id or an argument is unknown, a dependency is missing, or the spaces are
        not supported.
    """

    game = minatar.is_minatar_id(name)
    if game:
        arguments = {**minatar.PROTOCOL, **arguments}

    def make(**more: Any) -> gymnasium.Env[Any, Any]:
        # CheckedEnvironments checks the time steps.
        options: dict[str, Any] = {"disable_env_checker": True, **arguments, **more}
        return gymnasium.make(_registered(name), **options)

    try:
        env = make()
    except Exception as error:  # arguments reach the simulator, which may raise anything
        raise ValueError(_explain(name, arguments, error)) from error
    texts = tuple(f"{key}={value}" for key, value in sorted(arguments.items()))
    drawable: Any = minatar.drawn(make) if game else _with_frames(env, make)
    host = _host_environment(env, make, PREFIX + name, processes, drawable)
    return host._replace(spec=host.spec._replace(arguments=texts))


def _registered(name: str) -> Any:
    """Return the first argument of ``gymnasium.make``; called in each process with environments."""
    if minatar.is_minatar_id(name):
        minatar.register_games()
        # Pass the specification, because Gymnasium would warn that the id with all six actions,
        # -v0, is out of date.
        return gymnasium.registry.get(name, name)
    if _is_box2d(name):
        # This import crashes the process if warnings are errors.
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            importlib.import_module("Box2D")
    return name


def _with_frames(env: gymnasium.Env[Any, Any], make: Any) -> Any:
    """Return a function that makes an environment that can render; None if it cannot."""
    if "rgb_array" not in env.metadata.get("render_modes", ()):
        return None
    return partial(make, render_mode="rgb_array")


def from_gymnasium(
    make: Callable[[], gymnasium.Env[Any, Any]],
    name: str,
    *,
    processes: bool = False,
    make_drawable: Callable[[], gymnasium.Env[Any, Any]] | None = None,
) -> HostEnvironment:
    """Return an environment on the host from a function that makes a Gymnasium environment.

    If the info of its reset contains an ``action_mask``, the ``action_mask`` of every step is used
    as the mask of legal actions; see ``jaxdqn.envs.vector.masks``.

    Args:
      make: function that returns a new environment. It is called once here, and once for each
        environment of a run.
      name: name of the environment in reports.
      processes: True to step each environment in a separate process, started by ``spawn``; a script
        then needs ``if __name__ == "__main__":``. Otherwise the environments are stepped in turn in
        this process.
      make_drawable: function that returns a new environment with ``render_mode="rgb_array"``, for
        videos. The default is ``make`` if its environments have this mode.

    Raises:
      ValueError: if the spaces are not supported; see ``jaxdqn.envs.vector.spaces``.
    """
    env = make()
    if make_drawable is None and env.render_mode == "rgb_array":
        make_drawable = make
    return _host_environment(env, make, name, processes, make_drawable)


def _host_environment(
    env: gymnasium.Env[Any, Any],
    make: Callable[[], gymnasium.Env[Any, Any]],
    name: str,
    processes: bool,
    make_drawable: Callable[[], gymnasium.Env[Any, Any]] | None,
) -> HostEnvironment:
    """Read the properties of an environment made by ``make``, and close it."""
    try:
        _check_kind(env)
        observations = observation_arrays(env.observation_space)
        actions = discrete_actions(env.action_space)
        masked = has_mask(env)
    except ValueError as error:
        raise ValueError(f"env={name!r}: {error}") from error
    finally:
        env.close()
    spec = EnvSpec(
        name=name,
        obs_shape=observations.shape,
        obs_dtype=observations.dtype,
        num_actions=actions.size,
        max_episode_steps=None if env.spec is None else env.spec.max_episode_steps,
        masked=masked,
    )
    kind = WorkerEnvironments if processes else SerialEnvironments
    host = HostEnvironment(
        spec,
        lambda num_envs: kind([make] * num_envs, observations, actions, masked),
        bounds=observations.bounds,
    )
    if make_drawable is not None:
        frames = [make_drawable]
        host = host._replace(
            make_drawable=lambda: SerialEnvironments(frames, observations, actions, masked)
        )
    if processes:
        return host._replace(most_eval_envs=os.cpu_count() or 1)
    return host


def _check_kind(env: Any) -> None:
    """Raise ValueError unless an object is a single environment without autoreset."""
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise ValueError(
            f"{type(env).__name__}: must be one environment; num_envs is the number to create"
        )
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.Autoreset):
            raise ValueError("wrapper Autoreset: must be removed, episodes are reset by the run")
        env = env.env


def _explain(name: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """Return the reason, in one line, why an environment cannot be made."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, gymnasium.error.DependencyNotInstalled) and _is_box2d(name):
        reason = f'{reason.partition(",")[0]}; pip install "jaxdqn[box2d]" installs it'
    elif isinstance(error, ValueError) and minatar.is_minatar_id(name):
        return f"env={PREFIX + name!r}: {reason}"
    elif isinstance(error, ModuleNotFoundError):
        module = name.partition(":")[0]
        # Gymnasium raises another error from the first, with a longer message.
        absent = error.name or getattr(error.__cause__, "name", None)
        reason = f"No module named {absent!r}" if absent else reason
        if module in _EXTRAS:
            reason = f'{reason}; pip install "jaxdqn[{_EXTRAS[module]}]" installs it'
    if arguments and not isinstance(error, gymnasium.error.Error | ModuleNotFoundError):
        return f"env_args: must be arguments of {name}; {type(error).__name__}: {reason}"
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        nearest = f"; nearest: {', '.join(PREFIX + each for each in near)}" if near else ""
        return f"env={PREFIX + name!r}: must be an id registered with Gymnasium{nearest}"
    return f"env={PREFIX + name!r}: cannot be made: {reason}"


def _is_box2d(name: str) -> bool:
    """Return True if an id is a Gymnasium environment that needs Box2D."""
    spec = gymnasium.registry.get(name)
    return spec is not None and str(spec.entry_point).startswith("gymnasium.envs.box2d")
