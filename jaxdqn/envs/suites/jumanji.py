"""Jumanji, ``jumanji:ID``.

Arguments: the constructor arguments that are plain values, such as ``time_limit``; and ``masks``.
With ``masks=False`` the agent may take actions outside ``action_mask``.

Jumanji treats the time limit as a terminal state, with a discount of 0. Here the limit is removed
from the environment and applied by a wrapper, so that it truncates the episode.

``action_mask`` is not part of the observation. The other fields are flattened with the bounds of
the environment's ``observation_spec``, and the tiles of Game2048 become one-hot.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.envs.arguments import LIMITS, changed, checked
from jaxdqn.envs.suites.adapter import Source, import_suite, limited, require_id
from jaxdqn.envs.suites.observations import Bounds, flatten, parts
from jaxdqn.errors import reject
from jaxdqn.types import Array

MOST_ACTIONS = 1024
"""Maximum number of combinations when several discrete actions become one discrete space."""
_MASK = "action_mask"
_NO_LIMIT = 2**31 - 1


class MaskedState(NamedTuple):
    """State of the environment, and the mask of its observation."""

    inner: Any
    mask: Any
    """``action_mask`` in the layout of the environment; empty without masks."""


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return an environment of Jumanji.

    Raises:
        ValueError: if Jumanji is not installed, the id or an argument is unknown or invalid, the
            actions are continuous or too many, or there are several rewards.
    """
    name = f"jumanji:{ident}"
    jumanji, specs = import_suite(name, "jumanji", "jumanji.specs")
    require_id(name, jumanji.registered_environments())
    env = jumanji.make(ident)
    defaults = {**_defaults(env), "masks": True}
    values = checked(name, arguments, defaults)
    masks = values.pop("masks", True)
    if values:
        env = jumanji.make(ident, **values)
    size, convert = _actions(name, specs, env.action_spec)
    _, example = jax.eval_shape(env.reset, jax.random.key(0))
    if example.reward.shape != ():
        reject("env", name, f"an environment with one reward, not {example.reward.shape[0]}")
    bounds, limit = _bounds(env, specs, example.observation), getattr(env, "time_limit", None)
    masked = masks and hasattr(example.observation, _MASK)
    env = copy.copy(env)
    if limit is not None:
        env.time_limit = _NO_LIMIT

    def observed(state: Any, timestep: Any) -> tuple[MaskedState, Array]:
        mask = getattr(timestep.observation, _MASK) if masked else ()
        obs = flatten(timestep.observation, bounds, without=(_MASK,))
        return MaskedState(state, mask), obs

    def reset(key: Array) -> tuple[Any, Array]:
        return observed(*env.reset(key))

    def step(key: Array, state: MaskedState, action: Array) -> tuple[Any, ...]:
        inner, timestep = env.step(state.inner, convert(action))
        last, terminated = timestep.last(), timestep.discount == 0
        return *observed(inner, timestep), timestep.reward, last & terminated, last & ~terminated

    sizes = _sizes(env.action_spec)
    game = Source(
        reset,
        step,
        size,
        legal=(lambda state: joint_mask(state.mask, sizes)) if masked else None,
        changed=changed(arguments, defaults),
    )
    return limited(game, None if limit is None else int(limit))


def _defaults(env: Any) -> dict[str, Any]:
    """Return the plain constructor arguments with their values in ``env``."""
    parameters = inspect.signature(type(env)).parameters
    found = {name: getattr(env, name, parameters[name].default) for name in parameters}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, bool | int | float | str) or name in LIMITS
    }


def _actions(name: str, specs: Any, spec: Any) -> tuple[int, Callable[[Array], Any]]:
    """Return the number of actions, and the conversion of an action [] int32 for the environment.

    Several discrete actions become one discrete space of all combinations, in row-major order.
    """
    if isinstance(spec, specs.DiscreteArray):
        return int(spec.num_values), lambda action: action
    if not isinstance(spec, specs.MultiDiscreteArray):
        reject("env", name, f"an environment with discrete actions, not {spec}")
    sizes = _sizes(spec)
    if (count := math.prod(sizes)) > MOST_ACTIONS:
        reject("env", name, f"an environment with at most {MOST_ACTIONS:,} combinations of actions "
               f"to be one discrete space, not {count:,}")  # fmt: skip

    def combination(action: Array) -> Array:
        parts = jnp.stack(jnp.unravel_index(action, sizes))
        return parts.reshape(spec.shape).astype(spec.dtype)

    return count, combination


def _sizes(spec: Any) -> tuple[int, ...]:
    """Return the number of values of each discrete action."""
    return tuple(np.asarray(spec.num_values).reshape(-1).tolist())


def joint_mask(mask: Array, sizes: tuple[int, ...]) -> Array:
    """Convert the mask of several discrete actions to a mask of their combinations, [A] bool.

    Args:
        mask: bool array of shape ``sizes``, or of shape ``[C, V]`` with one row for each of C
            actions of V values. In the second form a combination is legal if each of its actions
            is legal.
        sizes: number of values of each action.
    """
    if mask.shape == sizes:
        return mask.reshape(-1)
    legal = jnp.ones((1,), bool)
    for row in mask:
        legal = (jnp.expand_dims(legal, 1) & jnp.expand_dims(row, 0)).reshape(-1)
    return legal


def _bounds(env: Any, specs: Any, observation: Any) -> dict[str, Bounds]:
    """Return the bounds of the integers in an observation, by the names from ``parts``."""
    bounds = {}
    for name, leaf in parts(observation, without=(_MASK,)).items():
        spec = env.observation_spec
        for field in name.split("."):
            spec = getattr(spec, field, None)
        if isinstance(spec, specs.BoundedArray) and jnp.issubdtype(leaf.dtype, jnp.integer):
            bounds[name] = Bounds(int(spec.minimum.min()), int(spec.maximum.max()))
    if type(env).__name__ == "Game2048":
        # The spec has no bounds. A cell holds the exponent of its tile. To build the greatest
        # tile, the board needs one cell for each smaller exponent, starting from 2**2.
        bounds["board"] = Bounds(0, env.board_size**2 + 1)
    return bounds
