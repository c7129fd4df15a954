"""Build the trainer of a configuration, mapped over its devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from jaxdqn.config.config import Config
from jaxdqn.parallel import across_devices, across_mesh, device_collectives, population
from jaxdqn.parallel.model_parallel import split_network
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Trainer


def make_mapped_trainer(config: Config, **parts: Any) -> Trainer:
    """Make the trainer of a configuration, spread over its devices.

    Raises:
        ValueError: as ``make_trainer``, or if there are too few devices.
    """
    if config.learners > 1:
        devices = run_devices(config) if config.devices > 1 else []
        alone = make_trainer(config, **parts)
        return population(alone, config.learners, devices=devices, how=config.population)
    if config.devices == 1:
        return make_trainer(config, **parts)
    devices = run_devices(config)
    collectives = device_collectives(config.replicas, deterministic=config.deterministic)
    if config.model_devices > 1:
        split = partial(split_network, model_devices=config.model_devices)
        trainer = make_trainer(config, collectives=collectives, around_network=split, **parts)
        return across_mesh(trainer, devices, config.model_devices)
    trainer = make_trainer(config, collectives=collectives, **parts)
    return across_devices(trainer, devices, mapping=config.mapping)


def run_devices(config: Config) -> list[jax.Device]:
    """Return the devices a run uses.

    Raises:
        ValueError: if there are too few.
    """
    devices = jax.devices()
    if config.devices > len(devices):
        here = f"the {len(devices)} {devices[0].platform} devices here"
        if devices[0].platform == "cpu":
            here += f"; --virtual-devices {config.devices} makes as many of the CPU"
        raise ValueError(f"devices={config.devices}: must be at most {here}")
    return devices[: config.devices]
