"""What a run is called: its algorithm, its mapping, and the versions that it runs with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import jax

from jaxdqn import __version__
from jaxdqn.config.config import Config
from jaxdqn.storage.jsonl import Record


def identity(config: Config, preset: str | None) -> Record:
    """Return what a summary says of a run before it begins."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax")
    return {
        "env": config.env,
        "preset": preset,
        "algorithm": algorithm(config),
        "seed": config.seed,
        "devices": config.devices,
        "processes": jax.process_count(),
        "mapping": mapping_of(config),
        "device_kind": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "jaxdqn": __version__,
        },
    }


def mapping_of(config: Config) -> str:
    """Return how the step is mapped, in a word or two: ``none``, ``shard_map``, ``population``."""
    names = []
    if config.learners > 1:
        names.append(f"population of {config.learners}")
    if config.devices > 1:
        names.append(config.mapping if config.learners == 1 else "shard_map")
    if config.model_devices > 1:
        names.append(f"{config.model_devices}-way model")
    return ", ".join(names) or "none"


def algorithm(config: Config) -> str:
    """Return the algorithm's name, its variants included: ``dqn``, ``double_dueling_c51_3step``."""
    bases = {
        "huber": "dqn",
        "squared": "dqn",
        "categorical": "c51",
        "quantile": "qr_dqn",
        "implicit_quantile": "iqn",
    }
    if config.algorithm == "pqn":
        return "pqn"
    parts = {
        config.recurrent: config.recurrent != "none",
        "noisy": config.noisy,
        "prioritized": config.replay == "prioritized",
        "double": config.double,
        "dueling": config.dueling,
        config.bootstrap: config.bootstrap != "greedy",
    }
    name = "_".join(
        [part for part, used in parts.items() if used] + [bases.get(config.loss, config.loss)]
    )
    return name if config.n_step == 1 else f"{name}_{config.n_step}step"
