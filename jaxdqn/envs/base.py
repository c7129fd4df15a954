"""From a plain ``reset`` and ``step`` to an environment with next-step autoreset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Environment, EnvSpec, PyTree, TimeStep

Reset = Callable[[Array], tuple[PyTree, Array]]
"""``reset(key) -> (state, obs)``"""
Step = Callable[[Array, PyTree, Array], tuple[PyTree, Array, Array, Array]]
"""``step(key, state, action) -> (state, obs, reward, terminated)``"""
TruncatingStep = Callable[[Array, PyTree, Array], tuple[PyTree, Array, Array, Array, Array]]
"""``step(key, state, action) -> (state, obs, reward, terminated, truncated)``"""

_OBS_KINDS = (jnp.floating, jnp.integer, jnp.bool_)


class EpisodeState(NamedTuple):
    """An environment's own state, and whether its episode has ended."""

    inner: PyTree
    """The state of the ``reset`` and ``step`` that were given."""
    done: Array
    """[] bool; the next step resets."""


class TimedState(NamedTuple):
    """A user's state, and the age of the episode."""

    inner: PyTree
    steps: Array
    """[] int32, environment steps since the reset."""


def make_environment(
    reset: Reset,
    step: Step,
    *,
    name: str,
    num_actions: int,
    max_episode_steps: int | None = None,
) -> Environment:
    """Build an environment from two plain functions of one example.

    ``reset(key) -> (state, obs)`` and
    ``step(key, state, action) -> (state, obs, reward, terminated)`` need know of
    no time limit, autoreset, vmap or scan. The state is any pytree, Python
    numbers included; ``action`` is [] int32 below ``num_actions``.

    Args:
        reset: starts an episode; consumes its key.
        step: advances it; consumes its key.
        name: how reports call the environment.
        num_actions: A.
        max_episode_steps: environment steps after which an episode is truncated;
            None if it has no limit.

    Raises:
        ValueError: if an argument is out of range, or what the functions return
            has the wrong structure, shape or dtype.
    """
    if max_episode_steps is None:

        def endless_step(key: Array, state: PyTree, action: Array) -> tuple[Any, ...]:
            return (*_checked_length(step(key, state, action), 4), False)

        return with_autoreset(reset, endless_step, name=name, num_actions=num_actions)

    _require_count("max_episode_steps", max_episode_steps)

    def timed_reset(key: Array) -> tuple[TimedState, Array]:
        inner, obs = reset(key)
        return TimedState(inner=inner, steps=jnp.int32(0)), obs

    def timed_step(key: Array, state: TimedState, action: Array) -> tuple[Any, ...]:
        inner, obs, reward, terminated = _checked_length(step(key, state.inner, action), 4)
        steps = state.steps + 1
        return TimedState(inner, steps), obs, reward, terminated, steps >= max_episode_steps

    return with_autoreset(
        timed_reset,
        timed_step,
        name=name,
        num_actions=num_actions,
        max_episode_steps=max_episode_steps,
    )


def with_autoreset(
    reset: Reset,
    step: TruncatingStep,
    *,
    name: str,
    num_actions: int,
    max_episode_steps: int | None = None,
    view: Callable[[Array], Array] = jnp.asarray,
) -> Environment:
    """Build an environment from functions that judge truncation themselves.

    As ``make_environment``, but ``step`` returns ``truncated`` as a fifth value,
    and ``max_episode_steps`` is only told to ``EnvSpec``. Where a step is both
    terminated and truncated, it is terminated. ``view`` turns an observation of
    ``reset`` or ``step`` into the one shown; it is applied to the one that counts
    (to both, the step of Breakout took 8 % longer).

    Raises:
        ValueError: as ``make_environment``.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: must be a non-empty string")
    _require_count("num_actions", num_actions)
    avals = _fixed_point(reset, step)
    obs_aval = jax.eval_shape(view, avals[1])

    def first_step(key: Array) -> tuple[EpisodeState, TimeStep]:
        inner, obs = _cast(reset(key), avals)
        no = jnp.zeros((), bool)
        return EpisodeState(inner=inner, done=no), TimeStep(
            obs=view(obs),
            reward=jnp.zeros((), jnp.float32),
            terminated=no,
            truncated=no,
            first=jnp.ones((), bool),
        )

    def next_step(key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        resetting = state.done
        # Both branches are computed and one selected: under vmap a conditional
        # would run both all the same. They may share the key, since which of them
        # counts was settled before it was drawn; a split took a sixth of the step.
        inner, obs, reward, terminated, truncated = step(key, state.inner, action)
        inner, obs = jax.tree.map(
            lambda fresh, stepped: jax.lax.select(resetting, fresh, stepped),
            _cast(reset(key), avals),
            _cast((inner, obs), avals),
        )
        going = ~resetting
        terminated = jnp.asarray(terminated, bool) & going
        truncated = jnp.asarray(truncated, bool) & going & ~terminated
        return EpisodeState(inner=inner, done=terminated | truncated), TimeStep(
            obs=view(obs),
            reward=jnp.where(resetting, 0.0, jnp.asarray(reward, jnp.float32)),
            terminated=terminated,
            truncated=truncated,
            first=resetting,
        )

    return Environment(
        reset=first_step,
        step=next_step,
        spec=EnvSpec(
            name=name,
            obs_shape=obs_aval.shape,
            obs_dtype=obs_aval.dtype,
            num_actions=num_actions,
            max_episode_steps=max_episode_steps,
        ),
    )


def _fixed_point(reset: Reset, step: TruncatingStep) -> tuple[PyTree, jax.ShapeDtypeStruct]:
    """Find the shapes and dtypes of (state, obs) that ``step`` maps to themselves.

    A scan demands them, and code that starts from Python numbers does not give
    them at once: ``0`` is weakly typed after the reset and not after a step.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.ShapeDtypeStruct((), jnp.int32)
    carry = jax.eval_shape(lambda key: _checked_length(reset(key), 2, "reset"), key)
    carry = _merge(carry, carry)
    if not isinstance(carry[1], jax.ShapeDtypeStruct):
        raise ValueError(f"reset: must return one array as observation, not {carry[1]}")
    if not any(jnp.issubdtype(carry[1].dtype, kind) for kind in _OBS_KINDS):
        raise ValueError(
            f"reset: must return an observation of dtype float, bool or int, not {carry[1].dtype}"
        )
    # Each round either ends or promotes a dtype, and there are few above a dtype.
    while True:
        # The dtypes tried here may be ones that strict promotion refuses: an ``0``
        # that becomes a float is an int32 in the first round.
        with jax.numpy_dtype_promotion("standard"):
            *stepped, reward, terminated, truncated = jax.eval_shape(
                lambda *args: _checked_length(step(*args), 5), key, carry[0], action
            )
        _require_scalars(reward=reward, terminated=terminated, truncated=truncated)
        merged = _merge(carry, tuple(stepped))
        if jax.tree.leaves(merged) == jax.tree.leaves(carry):
            return carry
        carry = merged


def _merge(fresh: PyTree, stepped: PyTree) -> PyTree:
    wanted: Any = jax.tree.structure(fresh)
    found: Any = jax.tree.structure(stepped)
    if wanted != found:
        raise ValueError(
            f"step: must return (state, obs) of the structure of reset's, {wanted}, not {found}"
        )
    return jax.tree_util.tree_map_with_path(_merge_leaf, fresh, stepped)


def _merge_leaf(
    path: tuple[Any, ...], fresh: jax.ShapeDtypeStruct, stepped: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
    is_key = jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key)
    if fresh.shape != stepped.shape or (is_key and fresh.dtype != stepped.dtype):
        where = jax.tree_util.keystr(path)
        raise ValueError(
            f"step: must return (state, obs){where} as reset does, "
            f"{fresh.dtype}{list(fresh.shape)}, not {stepped.dtype}{list(stepped.shape)}"
        )
    if is_key:
        return fresh
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(fresh, stepped)
    return jax.ShapeDtypeStruct(fresh.shape, dtype)


def _cast(tree: PyTree, avals: PyTree) -> PyTree:
    """Give every leaf its dtype, and take its weak type away."""

    def cast(leaf: Any, aval: jax.ShapeDtypeStruct) -> Array:
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return leaf  # jnp.asarray takes no key type
        return jnp.asarray(leaf, aval.dtype)

    return jax.tree.map(cast, tree, avals)


def _checked_length(returned: Any, length: int, who: str = "step") -> tuple[Any, ...]:
    if not isinstance(returned, tuple) or len(returned) != length:
        found = f"one of {len(returned)}" if isinstance(returned, tuple) else type(returned)
        raise ValueError(f"{who}: must return a tuple of {length}, not {found}")
    return returned


def _require_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")


def _require_scalars(**values: jax.ShapeDtypeStruct) -> None:
    for name, value in values.items():
        if getattr(value, "shape", None) != ():
            raise ValueError(f"step: must return {name} of shape [], not {value}")
