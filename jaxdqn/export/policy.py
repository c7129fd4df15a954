"""A trained policy for plain Python."""

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
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.params import PARAMETERS, restore_params
from jaxdqn.storage.restore import newest_intact
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Array, Environment, EnvSpec, Params, PyTree, Trainer


def load_policy(
    run: str | os.PathLike[str],
    which: str = "best",
    *,
    environment: Environment | None = None,
    network: Any = None,
) -> Callable[[Any], Any]:
    """Load the greedy policy of a run directory.

    Args:
        run: the directory.
        which: ``best`` or ``last`` parameters; of a population those of the learner that
            was best, or led at the end.
        environment: your own, if the run had one.
        network: your own, if the run had one.

    Returns:
        ``policy(obs) -> action``: for one observation [O] an int, for a batch
        [B, O] an int32 array [B]. Stacked observations are [O, S]. That of a recurrent network
        remembers what it was called with: ``policy(obs, first)``, with True, or [B] bool, where
        an observation opens an episode; its first call opens one anyway.

    Raises:
        ValueError: if the directory or its parameters are not there, or an
            argument is refused.
    """
    config, trainer, params = load_run(run, which, environment=environment, network=network)
    spec = trainer.environment.spec
    shape = observation_shape(config, spec)

    agent = trainer.agent
    carry: PyTree = None

    @jax.jit
    def greedy(carry: PyTree, obs: Array, first: Array) -> tuple[Array, PyTree]:
        actions, carry, _ = agent.act(jax.random.key(0), params, carry, obs, first, None)
        return actions, carry

    def policy(obs: Any, first: Any = False) -> Any:
        nonlocal carry
        obs = np.asarray(obs, spec.obs_dtype)
        alone = obs.shape == shape
        if not alone and obs.shape[1:] != shape:
            raise ValueError(f"obs.shape={obs.shape}: must be {shape} or (B, *{shape})")
        batch = obs[None] if alone else obs
        if carry is None or _rows(carry) not in (None, len(batch)):
            carry = agent.initial_carry(len(batch))
        opens = np.asarray(first, bool)
        if opens.shape not in ((), (len(batch),)):
            raise ValueError(f"first.shape={opens.shape}: must be () or ({len(batch)},)")
        opens = np.broadcast_to(opens, len(batch))
        actions, carry = greedy(carry, batch, opens)
        return int(actions[0]) if alone else np.array(actions)

    return policy


def _rows(carry: PyTree) -> int | None:
    """Return for how many environments a carry is; None if it is empty."""
    leaves = jax.tree.leaves(carry)
    return leaves[0].shape[0] if leaves else None


def load_run(
    run: str | os.PathLike[str],
    which: str = "best",
    *,
    environment: Environment | None = None,
    network: Any = None,
) -> tuple[Config, Trainer, Params]:
    """Read a run's configuration, rebuild its trainer for one device, restore its parameters.

    Of a population these are one learner's: the best one's, or that of the best last evaluation.

    Raises:
        ValueError: as ``load_policy``.
    """
    if which not in PARAMETERS:
        raise ValueError(f"which={which!r}: must be one of {', '.join(PARAMETERS)}")
    config = run_directory.read_config(run)
    config = _alone(config)
    trainer = make_trainer(config, environment=environment, network=network)
    spec = trainer.environment.spec
    obs = jax.ShapeDtypeStruct((1, *observation_shape(config, spec)), spec.obs_dtype)
    init = partial(trainer.agent.init, hyper=hyper_from(config))
    target = jax.eval_shape(init, jax.random.key(0), obs).params
    place = Path(run)
    if not (place / run_directory.SUMMARY).exists() or not (place / which).is_dir():
        # A run that has not ended has them in its checkpoints alone.
        place = newest_intact(place) or place
    return config, trainer, restore_params(place / which, target)


def _alone(config: Config) -> Config:
    """Return the configuration of one learner on one device: what its network is, stays."""
    return dataclasses.replace(config, **{name: getattr(Config, name) for name in PARALLEL_OPTIONS})


def observation_shape(config: Config, spec: EnvSpec) -> tuple[int, ...]:
    """Return the shape of what the network sees of one environment: O, or (O, S)."""
    return spec.obs_shape if config.frame_stack == 1 else (*spec.obs_shape, config.frame_stack)
