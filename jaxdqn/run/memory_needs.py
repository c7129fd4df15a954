"""Check, before allocation, that networks, replay and evaluations of a run fit in memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.agent.masks import act_on
from jaxdqn.config.config import Config
from jaxdqn.replay import check_memory
from jaxdqn.run.device_memory import (
    bytes_per_device,
    local_devices,
    runs_in_turn,
    working_bytes,
)
from jaxdqn.training.evaluation import evaluation_shape
from jaxdqn.training.vector_trainer import AnyTrainer, VectorTrainer
from jaxdqn.tree import tree_bytes
from jaxdqn.types import PyTree, TrainState

_TRACED_ELEMENTS = 2**20
"""Minimum number of observation elements in an evaluation for which the network is traced. Tracing
takes tens of milliseconds, and the activations of smaller evaluations need little memory."""


class Need(NamedTuple):
    """Memory that one part of a run needs on each device."""

    argument: str
    """Option that determines the size."""
    what: str
    """Subject and verb of the error message."""
    bytes: int


def check_memory_of_run(
    config: Config, trainer: AnyTrainer, state: TrainState, *, saves: bool
) -> None:
    """Check that the parts of a run that exist at the same time fit in memory.

    Args:
        config: configuration of the run.
        trainer: trainer of the run.
        state: shapes of the state.
        saves: True if the run has a directory for checkpoints.

    Raises:
        ValueError: if the parts do not fit; the error names the largest part and its option.
    """
    needs = memory_needs(config, trainer, state, saves=saves)
    largest = max(needs, key=lambda need: need.bytes)
    total = sum(need.bytes for need in needs)
    check_memory(
        total,
        devices=local_devices(config),
        what=f"{largest.what} {largest.bytes:,} of",
        argument=largest.argument,
    )


def memory_needs(
    config: Config, trainer: AnyTrainer, state: TrainState, *, saves: bool
) -> tuple[Need, ...]:
    """Return lower bounds on the memory of the parts that exist at the same time.

    Learning needs the networks, a gradient, the replay and the environments; a checkpoint on CPU
    copies the replay. An evaluation needs its environments and the largest activation of the
    network instead of the gradient.
    """
    taken = bytes_per_device(trainer, state)
    networks = working_bytes(config, taken.parameters + taken.target + taken.optimizer)
    at_once = _learners_at_once(config)
    gradient = taken.parameters * at_once // max(1, config.learners // config.devices)
    evaluation = _evaluation_bytes(config, trainer, state) * at_once
    copies = (
        saves
        and config.checkpoint_every != 0
        and config.replay_in_checkpoint
        and jax.default_backend() == "cpu"
    )
    replay = working_bytes(config, taken.replay) + (taken.replay if copies else 0)
    copied = " and its copy for a checkpoint (replay_in_checkpoint) take" if copies else " takes"
    network = "hidden_sizes" if config.network in ("auto", "mlp") else "network"
    return (
        Need(network, "the parameters, target network, optimiser and gradient take",
             networks + (gradient if gradient > evaluation else 0)),
        Need("replay_capacity", f"the replay{copied}", replay),
        Need("num_envs", "the environments take", working_bytes(config, taken.environments)),
        Need("eval_episodes", "an evaluation takes", 0 if gradient > evaluation else evaluation),
    )  # fmt: skip


def _evaluation_bytes(config: Config, trainer: AnyTrainer, state: TrainState) -> int:
    """Return the bytes of an evaluation of one learner: environments and largest activation."""
    if isinstance(trainer, VectorTrainer):
        return 0  # the memory of simulators is unknown
    episodes, agent, environment = config.eval_episodes, trainer.agent, trainer.environment
    shape = evaluation_shape(agent, environment, episodes, frame_stack=config.frame_stack)
    size = tree_bytes(shape)
    if episodes * math.prod(environment.spec.obs_shape) >= _TRACED_ELEMENTS:
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[trainer.mapped :], leaf.dtype),
            state.agent.params,
        )

        def act(params: PyTree, carry: PyTree, frames: PyTree, timestep: Any) -> Any:
            return act_on(agent, jax.random.key(0), params, carry, frames, timestep, None)

        arguments = params, shape.carry, shape.frames, shape.timestep
        size += _largest(jax.make_jaxpr(act)(*arguments).jaxpr)
    return size


def _learners_at_once(config: Config) -> int:
    """Return the number of learners that a device trains or evaluates at the same time."""
    return 1 if runs_in_turn(config) else max(1, config.learners // config.devices)


def _largest(jaxpr: Any) -> int:
    """Return the bytes of the largest array computed by a jaxpr or its inner jaxprs."""
    sizes = [0]
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", None) for value in equation.params.values()]
        sizes += [_largest(each) for each in inner if each is not None]
        for variable in equation.outvars:
            aval = variable.aval
            if hasattr(aval, "dtype") and not jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
                sizes.append(math.prod(aval.shape) * aval.dtype.itemsize)
    return max(sizes)
