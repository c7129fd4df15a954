"""Small environments and configurations with runs that can be counted by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.presets import PRESETS
from jaxdqn.envs import make_environment
from jaxdqn.types import Environment, PyTree, Trainer, TrainState

_FUSES = {"xla_cpu_use_fusion_emitters"} if jax.__version_info__ < (0, 11) else set()
"""Option of XLA for fused loops, which JAX 0.11 no longer has."""
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, **dict.fromkeys(_FUSES, False)}
quick_jit = partial(jax.jit, compiler_options=QUICK)
"""``jax.jit`` without XLA optimisation, in a third of the compile time: for tests that need not run
fast."""
OPTIMISED: dict[str, Any] = {"xla_backend_optimization_level": 3, **dict.fromkeys(_FUSES, True)}
bitwise_jit = partial(jax.jit, compiler_options=OPTIMISED)
"""``jax.jit`` with optimisation in the fast suite too. Only then are two programs of the same
computation, such as a scan of a function and the function by itself, bitwise identical."""


@contextmanager
def quick_runs(options: Mapping[str, Any] = QUICK) -> Iterator[None]:
    """Compile the programs of runs as ``quick_jit`` does, or with other options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdqn.run.compile.compiler_options", lambda config: dict(options))
        yield


@contextmanager
def shared_programs(directory: Path) -> Iterator[None]:
    """Keep compiled programs in a directory, so that runs of one shape compile once."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(directory), 0.0), strict=True):
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)


DEVICE_PRESETS = {name: config for name, config in PRESETS.items() if not is_host_env(config.env)}
"""Presets whose environments are on the device."""


def tiny(**overrides: Any) -> Config:
    """Return a configuration that compiles and runs fast."""
    values = {
        "num_envs": 4,
        "batch_size": 8,
        "replay_capacity": 256,
        "warmup_rows": 32,
        "total_rows": 400,
        "log_every": 100,
        "hidden_sizes": (16,),
    }
    return Config(**{**values, **overrides})


def cycle(rewards: Sequence[float], *, limit: int | None, terminal_at: int | None = None) -> Any:
    """Return an environment with states 0, 1, ..., n-1, 0, ..., observed as one-hot vectors.

    Leaving state s pays ``rewards[s]`` with action 0 and one less with action 1.
    Episodes start at state 0, are truncated after ``limit`` steps, and terminate
    on arrival at ``terminal_at``.
    """
    size, table = len(rewards), jnp.asarray(rewards, jnp.float32)

    def show(state: jax.Array) -> jax.Array:
        return (jnp.arange(size, dtype=jnp.int32) == state).astype(jnp.float32)

    def reset(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.int32(0)
        return state, show(state)

    def step(key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[Any, ...]:
        reward = table[state] - action.astype(jnp.float32)
        state = (state + 1) % size
        ends = jnp.bool_(False) if terminal_at is None else state == terminal_at
        return state, show(state), reward, ends

    return make_environment(reset, step, name="cycle", num_actions=2, max_episode_steps=limit)


@cache
def noisy(*, num_actions: int = 2, limit: int = 6) -> Environment:
    """Return an environment of random observations, rewards and ends, independent of the action.

    It is the same object for the same arguments, so that runs in it share compiled programs.
    Observations are two integers from 1 to 9 (never 0), as float32.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # A single random call, because each one makes the test compile longer.
        bits = jax.random.bits(key, (4,), jnp.uint8).astype(jnp.int32)
        obs = (bits[:2] % 9 + 1).astype(jnp.float32)
        return obs, bits[2].astype(jnp.float32) / 64 - 2, bits[3] < 40

    def reset(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.int32(0), draw(key)[0]

    def step(key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[Any, ...]:
        return state, *draw(key)

    return make_environment(
        reset, step, name="noisy", num_actions=num_actions, max_episode_steps=limit
    )


def watched_run(
    trainer: Trainer, iterations: int, watch: Any = lambda state: (), seed: int = 0
) -> tuple[TrainState, TrainState, PyTree, PyTree]:
    """Run; return the first state, the last, and the metrics and ``watch(state)`` [iterations]."""

    @quick_jit
    def run(key: jax.Array) -> Any:
        def step(state: TrainState, _: None) -> Any:
            state, metrics = trainer.step(state)
            return state, (metrics, watch(state))

        start = trainer.init(key)
        end, (metrics, watched) = jax.lax.scan(step, start, None, length=iterations)
        return start, end, metrics, watched

    return run(jax.random.key(seed))


def assert_identical(one: PyTree, other: PyTree) -> None:
    """Assert that two trees are bitwise identical, including their keys."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def rows_of(state: TrainState) -> tuple[Any, ...]:
    """Return the ring's flags, actions, rewards and observations, [T, E], up to the newest row."""
    size = int(state.replay.size)
    assert size < state.replay.storage.flags.shape[0], "the ring has wrapped"
    stored = jax.tree.map(lambda leaf: np.asarray(leaf[:size]), state.replay.storage)
    first, terminated, truncated = ((stored.flags & bit) > 0 for bit in (1, 2, 4))
    return first, terminated | truncated, stored.action, stored.reward, stored.obs


POISON = 1000.0
"""Reward of an illegal action in ``masked``, more than anything else pays."""


@cache
def masked(*, num_actions: int = 3, limit: int = 6, mask: bool = True) -> Environment:
    """Return an environment of random observations, masks and ends.

    It is ``noisy`` with a mask that is drawn at every step, and has no legal action in a terminal
    state. An illegal action pays ``POISON``; without ``mask`` the environment does not say which.
    """

    def draw(key: jax.Array) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        bits = jax.random.bits(key, (5 + num_actions,), jnp.uint8).astype(jnp.int32)
        always = jnp.arange(num_actions, dtype=jnp.int32) == bits[4] % num_actions
        allowed = (bits[5:] < 100) | always
        obs = (bits[:2] % 9 + 1).astype(jnp.float32)
        ends = bits[3] < 40
        return (allowed, ends), obs, bits[2].astype(jnp.float32) / 64 - 2, ends

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        (allowed, _), obs, _, _ = draw(key)
        return (allowed, jnp.bool_(False)), obs

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        after, obs, reward, ends = draw(key)
        return after, obs, jnp.where(state[0][action], reward, POISON), ends

    def legal(state: Any) -> jax.Array:
        return state[0] & ~state[1]

    return make_environment(
        reset, step, name="masked", num_actions=num_actions, max_episode_steps=limit,
        legal=legal if mask else None,
    )  # fmt: skip
