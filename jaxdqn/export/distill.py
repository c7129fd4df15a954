"""Policy distillation: train a smaller network on a policy's Q-values over replay observations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdqn.agent.agent import make_agent
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import initial_frames, push_frame
from jaxdqn.export.serialized import Policy
from jaxdqn.losses import is_masked
from jaxdqn.networks import make_network
from jaxdqn.networks.normalized import with_normalization
from jaxdqn.replay.export import export_rows
from jaxdqn.storage.directory import SUMMARY, read_config
from jaxdqn.storage.parts import read_parts, resolve_parts
from jaxdqn.storage.resume import read_state
from jaxdqn.types import (
    Array,
    NormalizedParams,
    Params,
    PyTree,
    Row,
    trained_params,
    with_trained_params,
)

STEPS, BATCH, LEARNING_RATE = 20_000, 256, 1e-3
_MOST_BYTES = 2**30
"""Maximum bytes of observations; the newest rows are used."""


def distill(policy: Policy, config: Config, rows: Row, hidden_sizes: Sequence[int]) -> Policy:
    """Train a policy of dense layers that imitates another policy (Rusu et al. 2016).

    The loss is the squared error of Q, in units of the standard deviation of Q, plus the
    Kullback-Leibler divergence between the softmax policies. The softmax temperature is the mean
    gap between the best and the second-best Q. The squared error preserves the scale of Q, and the
    divergence preserves the order of the actions.

    Args:
        policy: the teacher, a feed-forward policy.
        config: configuration of the teacher's run.
        rows: rows of that run's replay, leaves [T, E, ...].
        hidden_sizes: widths of the dense layers.
    """
    obs, legal = observations(rows, config.frame_stack)
    student_config = Config(
        network="mlp",
        hidden_sizes=tuple(hidden_sizes),
        frame_stack=config.frame_stack,
        layer_norm=config.layer_norm,
        scale_observations=config.scale_observations,
    )
    network = make_network(student_config, policy.spec)
    normalized = isinstance(policy.params, NormalizedParams)
    if normalized:
        network = with_normalization(network, policy.spec)
    params = network.init(jax.random.key(0), jnp.asarray(obs[:1]))
    if normalized:
        params = params._replace(observations=policy.params.observations)
    agent = make_agent(network, lambda hyper: optax.adam(LEARNING_RATE), masked=policy.spec.masked)
    student = policy._replace(agent=agent, params=params)
    return student._replace(params=_fit(policy, student, obs, legal))


def _fit(teacher: Policy, student: Policy, obs: np.ndarray, legal: PyTree) -> Params:
    """Return the parameters of the student after ``STEPS`` gradient steps."""

    def q_of(policy: Policy, params: Params, obs: Array, legal: PyTree) -> Array:
        masks = (legal,) if is_masked(legal) else ()
        first = jnp.zeros(len(obs), jnp.bool_)
        return policy.agent.act(jax.random.key(0), params, (), obs, first, None, *masks)[2].q

    of_teacher = jax.jit(lambda params, *inputs: q_of(teacher, params, *inputs))
    parts = [slice(begin, begin + 10_000) for begin in range(0, len(obs), 10_000)]
    inputs = [(obs[part], legal[part] if is_masked(legal) else ()) for part in parts]
    targets = np.concatenate([of_teacher(teacher.params, *each) for each in inputs])
    scale, gap = _scales(targets, legal)
    optimizer = optax.adam(LEARNING_RATE)

    def loss(trained: Params, obs: Array, legal: PyTree, target: Array) -> Array:
        q = q_of(student, with_trained_params(student.params, trained), obs, legal)
        allowed = jnp.where(target > -1e29, 1.0, 0.0)
        squared = jnp.sum(allowed * ((q - target) / scale) ** 2, axis=-1)
        return jnp.mean(squared + _divergence(target / gap, q / gap))

    def step(state: Any, key: Array, data: Any) -> tuple[Any, None]:
        trained, opt_state = state
        index = jax.random.randint(key, (BATCH,), 0, len(obs))
        grads = jax.grad(loss)(trained, *jax.tree.map(lambda leaf: leaf[index], data))
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 power
            updates, opt_state = optimizer.update(grads, opt_state, trained)
        return (optax.apply_updates(trained, updates), opt_state), None

    @jax.jit
    def fit(trained: Params, data: Any) -> Params:
        keys = jax.random.split(jax.random.key(1), STEPS)
        start = (trained, optimizer.init(trained))
        return jax.lax.scan(lambda state, key: step(state, key, data), start, keys)[0][0]

    data = jax.tree.map(jnp.asarray, (obs, legal, targets))
    return with_trained_params(student.params, fit(trained_params(student.params), data))


def _scales(targets: np.ndarray, legal: PyTree) -> tuple[np.float32, np.float32]:
    """Return the standard deviation of Q and the mean gap of the two best Q, both positive."""
    allowed = targets > -1e29
    scale = np.std(targets[allowed])
    several = allowed.sum(axis=-1) > 1
    best = np.sort(targets[several], axis=-1)
    gap = np.mean(best[:, -1] - best[:, -2]) if several.any() else scale
    return np.float32(max(scale, 1e-6)), np.float32(max(gap, 1e-6))


def _divergence(target: Array, q: Array) -> Array:
    """Return the Kullback-Leibler divergence KL(softmax(target) || softmax(q)), [B] for [B, A]."""
    log_target, log_q = jax.nn.log_softmax(target), jax.nn.log_softmax(q)
    return jnp.sum(
        jnp.exp(log_target) * jnp.where(target > -1e25, log_target - log_q, 0.0), axis=-1
    )


def observations(rows: Row, frame_stack: int) -> tuple[np.ndarray, PyTree]:
    """Return the newest network inputs, [N, O] or [N, O, S], and their masks, [N, A] or empty."""
    bytes_of_step = rows.obs[0].nbytes * frame_stack
    steps = max(1, min(len(rows.obs), _MOST_BYTES // bytes_of_step))
    rows = jax.tree.map(lambda leaf: leaf[len(leaf) - steps :], rows)
    obs: Any = rows.obs
    if frame_stack > 1:
        frames = initial_frames(jnp.asarray(obs[0]), frame_stack)
        stacks = [np.asarray(frames)]
        for now, first in zip(obs[1:], rows.first[1:], strict=True):
            frames = push_frame(frames, now, first)
            stacks.append(np.asarray(frames))
        obs = np.stack(stacks)

    def flat(leaf: Any) -> np.ndarray:
        return np.asarray(leaf).reshape(-1, *leaf.shape[2:])

    return flat(obs), flat(rows.legal) if is_masked(rows.legal) else ()


def read_replay(run: str | os.PathLike[str], which: str, **own: Any) -> Row:
    """Read the rows of a run's replay, [T, E, ...]; for a population, of the selected learner.

    Raises:
        ValueError: if the run has a recurrent network, a custom replay or learning, or no replay in
            its checkpoints.
    """
    config, recorded = read_config(run), read_parts(run)
    if config.recurrent != "none":
        raise ValueError(
            "distill_to: must be left out for a recurrent network, whose Q-values depend on "
            "earlier observations, which the smaller network would not see"
        )
    if config.algorithm == "pqn":
        raise ValueError(f"distill_to: must be left out for run={str(run)!r}; pqn has no replay")
    for name in ("replay", "learning"):
        if name in recorded:
            raise ValueError(f"run={str(run)!r}: must have a built-in {name} for distill_to")
    parts = resolve_parts(own, recorded, run=run)
    restored, _ = read_state(run, config, **parts.objects)
    if not restored.meta["replay"]:
        raise ValueError(
            f"run={str(run)!r}: must have its replay in its checkpoints (replay_in_checkpoint)"
        )
    replay = restored.state.replay
    if config.learners > 1:
        learner = json.loads((Path(run) / SUMMARY).read_text())[f"{which}_learner"]
        replay = jax.tree.map(lambda leaf: leaf[learner], replay)
    return export_rows(replay, devices=config.replicas)
