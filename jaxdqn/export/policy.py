"""Greedy policies from run directories, as plain Python functions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.config.options import PARALLEL_OPTIONS
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.environment_spec import check_spec
from jaxdqn.storage.params import PARAMETERS, restore_params
from jaxdqn.storage.parts import ACTING, NAMES, read_parts, resolve_parts
from jaxdqn.storage.restore import newest_intact
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.vector_trainer import AnyTrainer, make_single_trainer
from jaxdqn.types import Array, Environment, EnvSpec, Params, PyTree


def load_policy(
    run: str | os.PathLike[str],
    which: str = "best",
    *,
    environment: Environment | HostEnvironment | str | None = None,
    network: Any = None,
    agent: Any = None,
) -> Callable[[Any], Any]:
    """Load the greedy policy of a run directory.

    Args:
        run: run directory.
        which: ``best`` or ``last`` parameters. For a population, the parameters of the learner with
            the best evaluation, or with the best last evaluation.
        environment: custom environment of the run: an object, or a reference ``MODULE:FUNCTION``
            or ``FILE.py:FUNCTION``. The run directory stores a reference, so it can be omitted.
        network: custom network of the run, in the same form.
        agent: custom agent of the run, in the same form.

    Returns:
        ``policy(obs) -> action``: an int for one observation [O], an int32 array [B] for a batch
        [B, O]. With frame stacks an observation is [O, S]. The policy of a recurrent network keeps
        its carry between calls; ``policy(obs, first)`` resets it where ``first``, a bool or [B]
        bool, is True. The first call and any change of B start an episode. If the environment masks
        actions, ``policy(obs, legal=mask)`` takes the mask, bool [A] or [B, A], and returns a legal
        action.

    Raises:
        ValueError: if the directory or its parameters do not exist, an argument is invalid, a
            custom part of the run must be passed again, or the environment differs from the
            environment of the run in name, shapes, time limit or arguments.
    """
    config, trainer, params = load_run(
        run, which, environment=environment, network=network, agent=agent
    )
    spec = trainer.environment.spec
    shape = observation_shape(config, spec)

    agent = trainer.agent
    carry: PyTree = None

    @jax.jit
    def greedy(
        carry: PyTree, obs: Array, first: Array, masks: tuple[Array, ...]
    ) -> tuple[Array, PyTree]:
        key = jax.random.key(0)
        actions, carry, _ = agent.act(key, params, carry, obs, first, None, *masks)
        return actions, carry

    def policy(obs: Any, first: Any = False, legal: Any = None) -> Any:
        nonlocal carry
        obs = np.asarray(obs, spec.obs_dtype)
        single = obs.shape == shape
        if not single and obs.shape[1:] != shape:
            batched = ("B", *shape)
            expected = f"({', '.join(map(str, batched))})"
            raise ValueError(f"obs.shape={obs.shape}: must be {shape} or {expected}")
        batch = obs[None] if single else obs
        if carry is None or _batch_size(carry) not in (None, len(batch)):
            carry = agent.initial_carry(len(batch))
        first = np.asarray(first, bool)
        if first.shape not in ((), (len(batch),)):
            raise ValueError(f"first.shape={first.shape}: must be () or ({len(batch)},)")
        masks = _masks(legal, spec, len(batch), single)
        actions, carry = greedy(carry, batch, np.broadcast_to(first, len(batch)), masks)
        return int(actions[0]) if single else np.array(actions)

    return policy


def _masks(legal: Any, spec: EnvSpec, batch_size: int, single: bool) -> tuple[Any, ...]:
    """Return the checked mask [B, A] as extra arguments of ``Agent.act``; () without masks."""
    shape = (spec.num_actions,) if single else (batch_size, spec.num_actions)
    if not spec.masked:
        if legal is None:
            return ()
        raise ValueError(f"legal: must be left out; {spec.name} has no masks of legal actions")
    if legal is None:
        raise ValueError(
            f"legal: must be the mask of legal actions, bool {shape}; {spec.name} masks actions"
        )
    legal = np.asarray(legal)
    if legal.shape != shape or legal.dtype.kind not in "biu":
        raise ValueError(f"legal={legal.dtype}{legal.shape}: must be bool {shape}")
    legal = legal.astype(bool)
    if not legal.any(axis=-1).all():
        raise ValueError("legal: must have at least one legal action")
    return (legal.reshape(batch_size, spec.num_actions),)


def _batch_size(carry: PyTree) -> int | None:
    """Return the length of the leading axis of a carry; None if the carry is empty."""
    leaves = jax.tree.leaves(carry)
    return leaves[0].shape[0] if leaves else None


def load_run(
    run: str | os.PathLike[str],
    which: str = "best",
    *,
    environment: Environment | HostEnvironment | str | None = None,
    network: Any = None,
    agent: Any = None,
) -> tuple[Config, AnyTrainer, Params]:
    """Read a run: return its configuration, its trainer on one device, and its parameters.

    For a population, configuration and parameters are those of one learner, as in ``load_policy``.

    Args:
        run: run directory.
        which: ``best`` or ``last``, as in ``load_policy``.
        environment: custom environment, as in ``load_policy``.
        network: custom network, as in ``load_policy``.
        agent: custom agent, as in ``load_policy``.

    Raises:
        ValueError: see ``load_policy``.
    """
    if which not in PARAMETERS:
        raise ValueError(f"which={which!r}: must be one of {', '.join(PARAMETERS)}")
    config = _single_learner(run_directory.read_config(run))
    own = {"environment": environment, "network": network, "agent": agent}
    recorded = read_parts(run)
    acting = {name: part for name, part in recorded.items() if name in ACTING or name not in NAMES}
    parts = resolve_parts(own, acting, run=run)
    trainer = make_single_trainer(config, **parts.objects)
    spec = trainer.environment.spec
    check_spec(recorded, spec, run)
    obs = jax.ShapeDtypeStruct((1, *observation_shape(config, spec)), spec.obs_dtype)
    init = partial(trainer.agent.init, hyper=hyper_from(config))
    target = jax.eval_shape(init, jax.random.key(0), obs).params
    directory = Path(run)
    if not (directory / run_directory.SUMMARY).exists() or not (directory / which).is_dir():
        # The parameters of an unfinished run are only in its checkpoints.
        directory = newest_intact(directory) or directory
    return config, trainer, restore_params(directory / which, target)


def _single_learner(config: Config) -> Config:
    """Return the configuration for a single learner on one device with the same network."""
    return dataclasses.replace(config, **{name: getattr(Config, name) for name in PARALLEL_OPTIONS})


def observation_shape(config: Config, spec: EnvSpec) -> tuple[int, ...]:
    """Return the shape of one network input: O, or (O, S) with frame stacks."""
    return spec.obs_shape if config.frame_stack == 1 else (*spec.obs_shape, config.frame_stack)
