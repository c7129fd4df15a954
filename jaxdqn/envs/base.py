"""Make an environment with next-step autoreset from a plain ``reset`` and ``step``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.envs.autoreset import AutoresetStep
from jaxdqn.types import Array, Environment, EnvSpec, PyTree, TimeStep

Reset = Callable[[Array], tuple[PyTree, Array]]
"""``reset(key) -> (state, obs)``"""
Step = Callable[[Array, PyTree, Array], tuple[PyTree, Array, Array, Array]]
"""``step(key, state, action) -> (state, obs, reward, terminated)``"""
TruncatingStep = Callable[[Array, PyTree, Array], tuple[PyTree, Array, Array, Array, Array]]
"""``step(key, state, action) -> (state, obs, reward, terminated, truncated)``"""
Render = Callable[[PyTree], Any]
"""``render(state) -> frame``, uint8 [height, width, 3]"""
Legal = Callable[[PyTree], Array]
"""``legal(state) -> mask``, bool [A]"""

_OBS_KINDS = (jnp.floating, jnp.integer, jnp.bool_)


class EpisodeState(NamedTuple):
    """State of the wrapped environment, and a flag for the end of its episode."""

    inner: PyTree
    """State returned by the user's ``reset`` and ``step``."""
    done: Array
    """[] bool, True if the episode has ended and the next step resets"""


class TimedState(NamedTuple):
    """State of the user's environment, and the current length of the episode."""

    inner: PyTree
    steps: Array
    """[] int32, environment steps since the reset."""


class _Wrapped(NamedTuple):
    """Functions of the wrapped environment, and the shapes of their results."""

    reset: Reset
    step: TruncatingStep
    avals: PyTree
    """Shapes and dtypes of (state, obs)."""
    view: Callable[[Array], Array]
    legal: Legal | None

    def legal_in(self, state: PyTree) -> PyTree:
        """Return ``TimeStep.legal`` for a state."""
        return () if self.legal is None else jnp.asarray(self.legal(state))


def make_environment(
    reset: Reset,
    step: Step,
    *,
    name: str,
    num_actions: int,
    max_episode_steps: int | None = None,
    render: Render | None = None,
    legal: Legal | None = None,
) -> Environment:
    """Build an environment from two plain functions for a single environment.

    ``reset(key) -> (state, obs)`` and ``step(key, state, action) -> (state, obs, reward,
    terminated)`` need not handle time limits, autoreset, vmap or scan. The state is any pytree and
    may contain Python numbers; ``action`` is [] int32, from 0 to ``num_actions`` - 1.

    Args:
        reset: function that starts an episode; consumes its key.
        step: function that advances the episode; consumes its key.
        name: name of the environment in reports.
        num_actions: A, number of actions.
        max_episode_steps: environment steps after which an episode is truncated; None for no
            limit.
        render: function ``render(state) -> frame`` that draws a state as uint8
            [height, width, 3], for videos. It is called with NumPy leaves, outside jit.
        legal: function ``legal(state) -> mask``, bool [A], True for the legal actions of a state.
            Every state needs a legal action, except the state that ends an episode. None if all
            actions are always legal.

    Raises:
        ValueError: if an argument is out of range, or the functions return an
            invalid structure, shape or dtype.
    """
    if max_episode_steps is None:

        def endless_step(key: Array, state: PyTree, action: Array) -> tuple[Any, ...]:
            return (*_checked_length(step(key, state, action), 4), False)

        return with_autoreset(
            reset, endless_step, name=name, num_actions=num_actions, render=render, legal=legal
        )

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
        render=None if render is None else lambda state: render(state.inner),
        legal=(lambda state: legal(state.inner)) if callable(legal) else legal,
    )


def with_autoreset(
    reset: Reset,
    step: TruncatingStep,
    *,
    name: str,
    num_actions: int,
    max_episode_steps: int | None = None,
    view: Callable[[Array], Array] = jnp.asarray,
    render: Render | None = None,
    legal: Legal | None = None,
) -> Environment:
    """Build an environment from functions that report truncation themselves.

    Like ``make_environment``, but ``step`` returns ``truncated`` as a fifth value, and
    ``max_episode_steps`` only enters ``EnvSpec``. A step that is both terminated and truncated
    counts as terminated. ``view`` converts an observation of ``reset`` or ``step`` to the
    observation of the ``TimeStep``. It is applied once, after the selection between reset and step;
    applying it to both made the step of Breakout 8 % slower. ``legal`` is likewise applied once, to
    the selected state.

    Raises:
        ValueError: as ``make_environment``.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: must be a non-empty string")
    _require_count("num_actions", num_actions)
    if render is not None and not callable(render):
        raise ValueError(f"render={render!r}: must be a function state -> frame, or None")
    wrapped = _Wrapped(reset, step, _fixed_point(reset, step), view, legal)
    _check_legal(legal, wrapped.avals[0], num_actions)
    obs_aval = jax.eval_shape(view, wrapped.avals[1])
    return Environment(
        reset=partial(_first_step, wrapped),
        step=AutoresetStep(partial(_next_step, wrapped), partial(_advance, wrapped)),
        spec=EnvSpec(
            name=name,
            obs_shape=obs_aval.shape,
            obs_dtype=obs_aval.dtype,
            num_actions=num_actions,
            max_episode_steps=max_episode_steps,
            masked=legal is not None,
        ),
        render=None if render is None else lambda state: render(state.inner),
    )


def _first_step(wrapped: _Wrapped, key: Array) -> tuple[EpisodeState, TimeStep]:
    inner, obs = _cast(wrapped.reset(key), wrapped.avals)
    no = jnp.zeros((), bool)
    return EpisodeState(inner=inner, done=no), TimeStep(
        obs=wrapped.view(obs),
        reward=jnp.zeros((), jnp.float32),
        terminated=no,
        truncated=no,
        first=jnp.ones((), bool),
        legal=wrapped.legal_in(inner),
    )


def _next_step(
    wrapped: _Wrapped, key: Array, state: EpisodeState, action: Array
) -> tuple[EpisodeState, TimeStep]:
    resetting = state.done
    # Compute both branches and select one, because under vmap a conditional runs both anyway. The
    # branches may share the key, because ``done`` was known before the key was drawn. Splitting the
    # key took a sixth of the step.
    inner, obs, reward, terminated, truncated = wrapped.step(key, state.inner, action)
    inner, obs = jax.tree.map(
        lambda fresh, stepped: jax.lax.select(resetting, fresh, stepped),
        _cast(wrapped.reset(key), wrapped.avals),
        _cast((inner, obs), wrapped.avals),
    )
    running = ~resetting
    terminated = jnp.asarray(terminated, bool) & running
    truncated = jnp.asarray(truncated, bool) & running & ~terminated
    return EpisodeState(inner=inner, done=terminated | truncated), TimeStep(
        obs=wrapped.view(obs),
        reward=jnp.where(resetting, 0.0, jnp.asarray(reward, jnp.float32)),
        terminated=terminated,
        truncated=truncated,
        first=resetting,
        legal=wrapped.legal_in(inner),
    )


def _advance(
    wrapped: _Wrapped, key: Array, state: EpisodeState, action: Array
) -> tuple[EpisodeState, TimeStep]:
    """Step without a reset."""
    inner, obs, reward, terminated, truncated = wrapped.step(key, state.inner, action)
    inner, obs = _cast((inner, obs), wrapped.avals)
    terminated = jnp.asarray(terminated, bool)
    truncated = jnp.asarray(truncated, bool) & ~terminated
    return EpisodeState(inner=inner, done=terminated | truncated), TimeStep(
        obs=wrapped.view(obs),
        reward=jnp.asarray(reward, jnp.float32),
        terminated=terminated,
        truncated=truncated,
        first=jnp.zeros((), bool),
        legal=wrapped.legal_in(inner),
    )


def _fixed_point(reset: Reset, step: TruncatingStep) -> tuple[PyTree, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of (state, obs) that ``step`` maps to themselves.

    A scan requires such a fixed point. Code that starts from Python numbers needs several rounds to
    reach it: ``0`` is weakly typed after the reset, but not after a step.
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
    # This loop terminates: each round either returns or promotes a dtype, and promotion is bounded.
    while True:
        # Strict promotion would reject some rounds: a ``0`` that becomes a float is an int32 in the
        # first round.
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
    """Return the shapes of (state, obs), with dtypes promoted from those of reset and step."""
    expected: Any = jax.tree.structure(fresh)
    found: Any = jax.tree.structure(stepped)
    if expected != found:
        raise ValueError(
            f"step: must return (state, obs) in the structure of reset, {expected}, not {found}"
        )
    return jax.tree_util.tree_map_with_path(_merge_leaf, fresh, stepped)


def _merge_leaf(
    path: tuple[Any, ...], fresh: jax.ShapeDtypeStruct, stepped: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
    is_key = jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key)
    if fresh.shape != stepped.shape or (is_key and fresh.dtype != stepped.dtype):
        leaf = jax.tree_util.keystr(path)
        raise ValueError(
            f"step: must return (state, obs){leaf} as reset does, "
            f"{fresh.dtype}{list(fresh.shape)}, not {stepped.dtype}{list(stepped.shape)}"
        )
    if is_key:
        return fresh
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(fresh, stepped)
    return jax.ShapeDtypeStruct(fresh.shape, dtype)


def _cast(tree: PyTree, avals: PyTree) -> PyTree:
    """Cast every leaf to the dtype in ``avals`` and remove its weak type."""

    def cast(leaf: Any, aval: jax.ShapeDtypeStruct) -> Array:
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return leaf  # jnp.asarray does not accept keys
        return jnp.asarray(leaf, aval.dtype)

    return jax.tree.map(cast, tree, avals)


def _checked_length(returned: Any, length: int, function: str = "step") -> tuple[Any, ...]:
    """Return ``returned``, or raise a ValueError if it is not a tuple of ``length``."""
    if not isinstance(returned, tuple) or len(returned) != length:
        found = f"one of {len(returned)}" if isinstance(returned, tuple) else type(returned)
        raise ValueError(f"{function}: must return a tuple of {length}, not {found}")
    return returned


def _check_legal(legal: Any, state: PyTree, num_actions: int) -> None:
    """Check that ``legal`` returns bool [A] for a state of these shapes."""
    if legal is None:
        return
    if not callable(legal):
        raise ValueError(f"legal={legal!r}: must be a function state -> mask, or None")
    mask = jax.eval_shape(legal, state)
    found = getattr(mask, "shape", None), getattr(mask, "dtype", None)
    if found != ((num_actions,), jnp.dtype(bool)):
        raise ValueError(
            f"legal: must return a mask of shape [{num_actions}], the number of actions, and dtype "
            f"bool, not {mask}"
        )


def _require_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")


def _require_scalars(**values: jax.ShapeDtypeStruct) -> None:
    for name, value in values.items():
        if getattr(value, "shape", None) != ():
            raise ValueError(f"step: must return {name} of shape [], not {value}")
