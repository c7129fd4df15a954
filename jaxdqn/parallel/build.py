"""Build the trainer of a configuration, mapped over its devices or learners."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax

from jaxdqn import envs
from jaxdqn.config.config import Config
from jaxdqn.parallel import across_devices, across_mesh, device_collectives, population
from jaxdqn.parallel.model_parallel import split_network
from jaxdqn.parallel.vector_parallel import vector_across_devices
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_trainer import VectorTrainer, make_vector_trainer
from jaxdqn.types import Trainer


def make_mapped_trainer(config: Config, **parts: Any) -> Trainer:
    """Make the trainer of a configuration and apply the configured mapping.

    With an environment on the host the result is a ``VectorTrainer``.

    Args:
        config: configuration of the run.
        parts: keyword arguments of ``make_trainer``, such as ``environment``.

    Raises:
        ValueError: as ``make_trainer``, or if there are too few devices.
    """
    devices = run_devices(config) if config.devices > 1 else []
    host = envs.configured_host_environment(config, parts.get("environment"))
    if host is not None:
        return cast(Trainer, _on_host(config, devices, {**parts, "environment": host}))
    if config.model_devices > 1:
        parts["around_network"] = partial(split_network, model_devices=config.model_devices)
    # A single replica has identity collectives: one device, a population, or a mesh of one replica.
    collectives = device_collectives(config.replicas, deterministic=config.deterministic)
    trainer = make_trainer(config, collectives=collectives, **parts)
    if config.learners > 1:
        return population(trainer, config.learners, devices=devices, how=config.population)
    if config.devices == 1:
        return trainer
    if config.model_devices > 1:
        return across_mesh(trainer, devices, config.model_devices)
    return across_devices(trainer, devices, mapping=config.mapping)


def _on_host(config: Config, devices: Sequence[jax.Device], parts: dict[str, Any]) -> VectorTrainer:
    collectives = device_collectives(config.replicas, deterministic=config.deterministic)
    trainer = make_vector_trainer(config, collectives=collectives, **parts)
    if not devices:
        return trainer
    return vector_across_devices(trainer, devices, mapping=config.mapping)


def run_devices(config: Config) -> list[jax.Device]:
    """Return the devices that a run uses.

    Raises:
        ValueError: if there are too few devices.
    """
    devices = jax.devices()
    if config.devices > len(devices):
        available = f"the {len(devices)} {devices[0].platform} devices here"
        if devices[0].platform == "cpu":
            available += f"; --virtual-devices {config.devices} splits the CPU into as many"
        raise ValueError(f"devices={config.devices}: must be at most {available}")
    return devices[: config.devices]
