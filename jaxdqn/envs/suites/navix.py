"""NAVIX, ``navix:ID``.

Arguments: ``observation``, one of ``OBSERVATIONS``, and the plain fields of NAVIX's
``Environment``, such as ``max_steps``. Symbolic observations [H, W, (object, colour, state)] become
planes, [H, W, 21] bool; categorical ones [H, W] become one-hot bool; images remain uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxdqn.envs.arguments import changed, checked, plain_fields
from jaxdqn.envs.suites.adapter import Source, as_written, import_suite, require_id
from jaxdqn.envs.suites.observations import Bounds, one_hot, planes
from jaxdqn.errors import known_name, reject
from jaxdqn.types import Array

OBSERVATIONS = (
    "symbolic",
    "symbolic_first_person",
    "categorical",
    "categorical_first_person",
    "rgb",
    "rgb_first_person",
)
"""Functions of ``navix.observations``."""
_NUM_STATES = 4
"""Number of directions of the player, which exceeds the number of states of a door."""
_SCALE = 4
"""Magnification of rendered tiles of 8 pixels."""


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return an environment of NAVIX.

    NAVIX's own step, which resets after the end of an episode, is not used.

    Raises:
        ValueError: if NAVIX is not installed, or the id or an argument is unknown or invalid.
    """
    name = f"navix:{ident}"
    navix, cache = import_suite(
        name, "navix", "navix.rendering.cache", lazily=("wandb", "wandb.util")
    )
    require_id(name, navix.registry())
    env = navix.make(ident)
    defaults = plain_fields(env, without=("disable_autoreset",))
    defaults["observation"] = env.observation_fn.__name__
    values = checked(name, arguments, defaults)
    kind = values.pop("observation", defaults["observation"])
    if kind not in OBSERVATIONS:
        reject("env_args", f"observation={kind}", known_name("observation", kind, [*OBSERVATIONS]))
    env = env.replace(**values)
    observe = getattr(navix.observations, kind)

    def with_pictures(state: Any) -> Any:
        # The tiles take as much memory as a thousand states, so the state does not store them.
        return state.replace(cache=cache.RenderingCache.init(state.grid))

    def view_of(state: Any) -> Array:
        return observe(with_pictures(state) if kind.startswith("rgb") else state)

    env = env.replace(observation_fn=view_of)

    def carried(timestep: Any) -> Any:
        state = timestep.state.replace(cache=None)
        return timestep.replace(state=state, observation=None, info={})

    def reset(key: Array) -> tuple[Any, Array]:
        timestep = env.reset(key)
        return carried(timestep), timestep.observation

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        timestep = env._step(state, action)
        terminated, truncated = timestep.is_termination(), timestep.is_truncation()
        return carried(timestep), timestep.observation, timestep.reward, terminated, truncated

    @jax.jit
    def picture(state: Any) -> Array:
        with as_written():
            return navix.observations.rgb(with_pictures(state))

    return Source(
        reset,
        step,
        num_actions=len(env.action_set),
        max_episode_steps=int(env.max_steps),
        view=_view(navix, kind),
        render=lambda timestep: _enlarged(np.asarray(picture(timestep.state))),
        changed=changed(arguments, defaults),
    )


def _enlarged(frame: np.ndarray) -> np.ndarray:
    return frame.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)


def _view(navix: Any, kind: str) -> Callable[[Array], Array]:
    """Return the conversion of an observation to bool; images are unchanged."""
    if kind.startswith("rgb"):
        return lambda obs: obs
    ids = vars(navix.entities.EntityIds).values()
    most = max(int(value) for value in ids if isinstance(value, jax.Array))
    if kind.startswith("categorical"):
        return lambda obs: one_hot(obs, Bounds(-1, most))
    colours = len(navix.rendering.registry.PALETTE.as_string())
    return lambda obs: planes(obs, (most + 1, colours, _NUM_STATES))
