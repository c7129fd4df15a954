"""Common code of the suites: import, ids, errors, time limits and conversion to ``Environment``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.envs.base import Render, TimedState, with_autoreset
from jaxdqn.envs.gymnax import permissive_promotion
from jaxdqn.envs.suites.observations import standard
from jaxdqn.errors import known_name, reject
from jaxdqn.lazy_modules import import_matplotlib, imported_lazily
from jaxdqn.types import Array, Environment, PyTree

_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # From tensorflow_probability, which navix imports through distrax and rlax.
    ("jax.core.pytype_aval_mappings is deprecated", DeprecationWarning),
    # The emulator of octax writes wider integers to registers of 8 bits.
    ("scatter inputs have incompatible types", FutureWarning),
)
"""Warnings to ignore from the code of the suites, as (start of the message, category)."""


class Source(NamedTuple):
    """Environment of a suite without its autoreset."""

    reset: Callable[[Array], tuple[PyTree, Array]]
    """``reset(key) -> (state, obs)``"""
    step: Callable[[Array, PyTree, Array], tuple[Any, ...]]
    """``step(key, state, action) -> (state, obs, reward, terminated, truncated)``"""
    num_actions: int
    max_episode_steps: int | None = None
    view: Callable[[Array], Array] = standard
    """Conversion of an observation from ``reset`` or ``step`` to that of ``TimeStep``."""
    render: Render | None = None
    legal: Callable[[PyTree], Array] | None = None
    """``legal(state) -> mask``, [A] bool, True for the legal actions; None if all are legal. In a
    state that ends the episode, the mask may be all False."""
    changed: tuple[str, ...] = ()
    """Arguments that differ from the defaults, as NAME=VALUE."""


@contextmanager
def as_written() -> Iterator[None]:
    """Run or trace code of a suite under the JAX settings that it was written for."""
    with permissive_promotion(), warnings.catch_warnings():
        for message, category in _WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def import_suite(name: str, *modules: str, lazily: Iterable[str] = ()) -> list[ModuleType]:
    """Import modules of a suite.

    Args:
        name: ``SUITE:ID`` of the environment that needs the modules.
        modules: full names of the modules.
        lazily: modules that the suite imports but no environment uses; they need not be installed.

    Raises:
        ValueError: if a module, or a module that it needs, is missing; names the extra to install.
    """
    import_matplotlib()
    suite = name.partition(":")[0]
    try:
        # The suites create arrays during their import.
        with as_written(), jax.transfer_guard("allow"), imported_lazily(*lazily):
            return [import_module(module) for module in modules]
    except ImportError as error:
        reject("env", name, f"of an installed suite; install it with pip install "
               f'"jaxdqn[{suite}]" ({error})')  # fmt: skip


def require_id(name: str, known: Iterable[str]) -> None:
    """Check that the ID of ``SUITE:ID`` exists in the suite.

    Raises:
        ValueError: if the ID is unknown; lists the nearest ids.
    """
    suite, _, ident = name.partition(":")
    if ident not in (ids := sorted(known)):
        reject("env", name, f"{suite}:ID, with ID {known_name('environment', ident, ids)}")


def build(name: str, make: Callable[[], Source], arguments: Mapping[str, Any]) -> Environment:
    """Return an environment of a suite with next-step autoreset.

    Args:
        name: ``SUITE:ID``.
        make: function that returns the environment of the suite.
        arguments: arguments given by the user, for error messages.

    Raises:
        ValueError: as ``make``, or if the suite's code raises anything.
    """
    try:
        with as_written(), jax.transfer_guard("allow"):
            source = make()
            environment = with_autoreset(
                _written(source.reset),
                _written(source.step),
                name=name,
                num_actions=source.num_actions,
                max_episode_steps=source.max_episode_steps,
                view=source.view,
                render=source.render,
                legal=source.legal,
            )
    except OSError as error:
        raise ValueError(f"env={name!r}: its data could not be loaded: {_line(error)}") from error
    except Exception as error:  # arguments reach the suite, which may raise anything
        if isinstance(error, ValueError) and str(error).startswith(("env=", "env_args")):
            raise
        texts = [f"{key}={value}" for key, value in arguments.items()]
        reason = "with its default arguments" if not texts else f"with valid arguments, not {texts}"
        raise ValueError(
            f"env={name!r}: must be one that its suite can make {reason}: "
            f"{type(error).__name__}: {_line(error)}"
        ) from error
    return environment._replace(spec=environment.spec._replace(arguments=source.changed))


def limited(source: Source, limit: int | None) -> Source:
    """Truncate the episodes of ``source`` after ``limit`` environment steps; None for no limit.

    The state becomes a ``TimedState``.
    """
    if limit is None:
        return source

    def reset(key: Array) -> tuple[TimedState, Array]:
        state, obs = source.reset(key)
        return TimedState(state, jnp.int32(0)), obs

    def step(key: Array, state: TimedState, action: Array) -> tuple[Any, ...]:
        inner, obs, reward, terminated, truncated = source.step(key, state.inner, action)
        steps = state.steps + 1
        return TimedState(inner, steps), obs, reward, terminated, truncated | (steps >= limit)

    render, legal = source.render, source.legal
    return source._replace(
        reset=reset,
        step=step,
        max_episode_steps=limit,
        render=None if render is None else lambda state: render(state.inner),
        legal=None if legal is None else lambda state: legal(state.inner),
    )


def _written(function: Callable[..., Any]) -> Callable[..., Any]:
    def traced(*args: Any) -> Any:
        with as_written():
            return function(*args)

    return traced


def _line(error: Exception) -> str:
    """Return the first paragraph of an error message on one line."""
    return " ".join(str(error).strip().partition("\n\n")[0].split())
