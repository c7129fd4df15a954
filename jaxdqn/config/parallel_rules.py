"""Relations between the options of devices, replicas and populations. Imports no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxdqn.config.algorithm_rules import default_of
from jaxdqn.config.options import REPLICA_OPTIONS
from jaxdqn.errors import reject

if TYPE_CHECKING:
    from jaxdqn.config.config import Config


def validate_parallel(config: Config) -> None:
    """Check devices, replicas and learners.

    Raises:
        ValueError: if an option has an invalid value, or one that conflicts with another option.
    """
    _validate_devices(config)
    if config.learners > 1:
        _validate_population(config)
    elif config.population != "auto":
        reject("population", config.population, "auto with one learner (num_seeds=1, no sweep)")
    _validate_replicas(config)


def _validate_devices(config: Config) -> None:
    if config.devices % config.model_devices:
        reject("model_devices", config.model_devices, f"a divisor of devices={config.devices}")
    if config.model_devices == 1:
        return
    if config.compression != "none":
        reject("compression", config.compression, "none with model_devices above 1: compression "
               "packs the gradient into one vector and would gather its split parts")  # fmt: skip
    if config.outer_optimizer != "none":
        reject("outer_optimizer", config.outer_optimizer, "none with model_devices above 1")
    if config.optimizer == "muon":
        reject("optimizer", "muon", "adam, radam or rmsprop with model_devices above 1: muon "
               "would gather the parts of each matrix")  # fmt: skip
    if config.mapping == "pmap":
        reject("mapping", "pmap", "shard_map with model_devices above 1")


def _validate_population(config: Config) -> None:
    if config.learners % config.devices:
        reject("devices", config.devices, f"a divisor of the {config.learners} learners")
    if config.model_devices > 1:
        reject("model_devices", config.model_devices, "1 with several learners")
    if config.guard == "rollback":
        reject("guard", "rollback", "off, skip or stop with several learners")
    if config.replay_from is not None:
        reject("replay_from", config.replay_from, "omitted with several learners")


def _validate_replicas(config: Config) -> None:
    if config.replicas == 1:
        for name in REPLICA_OPTIONS:
            value, default = getattr(config, name), default_of(name)
            if value != default:
                reject(name, value, f"{default} without data-parallel replicas, which need one "
                       "learner and devices above model_devices")  # fmt: skip
    for name in ("num_envs", "batch_size") if config.algorithm == "dqn" else ("num_envs",):
        if getattr(config, name) % config.replicas:
            divisor = "devices" if config.model_devices == 1 else "devices/model_devices"
            reject(name, getattr(config, name), f"a multiple of {divisor}={config.replicas}")
    if config.average_every is not None:
        _validate_averaging(config, config.average_every)
        _validate_chunk_of_averages(config)
    elif config.average_moments:
        reject("average_moments", True, "False unless average_every is given")
    elif config.outer_optimizer != "none":
        reject("outer_optimizer", config.outer_optimizer, "none unless average_every is given")


def _validate_averaging(config: Config, every: int) -> None:
    """Check local SGD, with parameters averaged every ``every`` gradient steps."""
    steps = config.gradient_steps_per_iteration
    if every % steps and steps % every:
        reject("average_every", every, f"a multiple or a divisor of the {steps} gradient steps "
               "of an iteration")  # fmt: skip
    if config.compression != "none":
        reject("compression", config.compression, "none with average_every, which sends no "
               "gradients")  # fmt: skip
    if config.has_periodic_target and config.target_period % every:
        reject("target_period", config.target_period, f"a multiple of average_every={every}, so "
               "that the target network holds averaged parameters")  # fmt: skip


def _validate_chunk_of_averages(config: Config) -> None:
    """Check that replicas are equal at the end of a chunk."""
    unit = config.iterations_per_average
    if config.chunk_iterations is not None and config.chunk_iterations % unit:
        reject("chunk_iterations", config.chunk_iterations, f"a multiple of the {unit} iterations "
               "between averages")  # fmt: skip
