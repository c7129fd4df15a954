"""Plain DQN loop in Python, the baseline for environments on the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn import envs
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.training.algorithms import CustomParts, build_agent
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Batch, Exploration


class _Ring(NamedTuple):
    """Ring of pairs of observations in NumPy arrays, updated in place."""

    obs: np.ndarray
    next_obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray


def plain_loop(config: Config, iterations: int, device: Any, stack: ExitStack) -> Callable[[], Any]:
    """Return a function that runs iterations of DQN in Python; each call continues the last one.

    Acting and learning are jitted. The replay consists of NumPy arrays, and a batch is copied to
    the device for every gradient step.

    Args:
        config: configuration with an environment on the host and one-step returns.
        iterations: iterations in one call, each of K vector steps and M gradient steps.
        device: device that acts and learns.
        stack: closes the environments.
    """
    host = envs.configured_host_environment(config)
    assert host is not None
    vector = host.make(config.num_envs)
    stack.callback(vector.close)
    agent = build_agent(config, host.spec, identity_collectives, None, CustomParts())
    hyper = jax.device_put(hyper_from(config), device)
    before = vector.reset(config.seed)
    state = jax.jit(agent.init)(jax.random.key(0), jnp.asarray(before.obs), hyper=hyper)
    state = jax.device_put(state, device)
    act, learn = jax.jit(agent.act), jax.jit(agent.learn, donate_argnums=1)
    explore = Exploration(jnp.full(config.num_envs, config.epsilon_end), hyper.temperature)
    weights = jax.device_put(jnp.ones(config.batch_size), device)
    ring = _make_ring(config, host.spec)
    random, written = np.random.default_rng(0), 0

    def step(key: Any) -> None:
        nonlocal before, written
        actions, _, _ = act(key, state.params, (), before.obs, before.first, explore)
        actions = np.asarray(actions)
        after = vector.step(actions)
        for env in np.flatnonzero(~after.first):  # a reset is not a transition
            slot = written % config.replay_capacity
            ring.obs[slot], ring.next_obs[slot] = before.obs[env], after.obs[env]
            ring.action[slot], ring.reward[slot] = actions[env], after.reward[env]
            ring.discount[slot] = 0.0 if after.terminated[env] else config.gamma
            written += 1
        before = after

    def gradient_step(key: Any) -> Any:
        nonlocal state
        drawn = random.integers(0, min(written, config.replay_capacity), config.batch_size)
        drawn_rows = (
            ring.obs[drawn], ring.action[drawn], ring.reward[drawn], ring.discount[drawn],
            ring.next_obs[drawn],
        )  # fmt: skip
        batch = Batch(*jax.device_put(drawn_rows, device))
        state, info = learn(key, state, batch, weights, hyper=hyper)
        return info.loss

    keys = list(jax.random.split(jax.random.key(1), 64))
    for key in keys[: max(2, config.batch_size // config.num_envs)]:
        step(key)
    gradient_step(keys[0])

    def run() -> Any:
        loss = None
        for index in range(iterations):
            for vector_step in range(config.rollout_length):
                step(keys[(index + vector_step) % len(keys)])
            for _ in range(config.gradient_steps_per_iteration):
                loss = gradient_step(keys[index % len(keys)])
        return loss

    return run


def _make_ring(config: Config, spec: Any) -> _Ring:
    rows = config.replay_capacity
    obs = np.zeros((rows, *spec.obs_shape), spec.obs_dtype)
    scalars = np.zeros(rows, np.float32)
    return _Ring(obs, obs.copy(), np.zeros(rows, np.int32), scalars, scalars.copy())
