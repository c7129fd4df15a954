"""Random keys and hyper-parameters of each learner of a run."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.training.hyper import hyper_from, with_values
from jaxdqn.types import Array, Hyper


class RunKeys(NamedTuple):
    """Independent random keys of a run; for a population, each field has shape [P]."""

    train: Array
    evaluate: Array
    """The same key at every evaluation: all play the same episodes, so returns differ by policy."""
    confirm: Array
    """Folded with a count, so every confirmation plays fresh episodes."""


def run_keys(seed: int) -> RunKeys:
    """Return the keys of a run; ``train(config)(run_keys(seed).train)`` trains as ``run`` does."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def learner_keys(config: Config) -> RunKeys:
    """Return the keys of a configuration; for a population, [P] keys from the learners' seeds."""
    each = [run_keys(config.seed + index) for index in range(config.num_seeds)]
    if config.learners == 1:
        return each[0]
    return jax.tree.map(lambda *keys: jnp.stack(keys * len(config.sweep_points)), *each)


def learner_hypers(config: Config) -> Hyper:
    """Return the hyper-parameters of a run: leaves [], or [P] for a population.

    The learners with the same swept values, one for each seed, are contiguous.
    """
    shared = hyper_from(config)
    if config.learners == 1:
        return shared
    each = [
        with_values(shared, point) for point in config.sweep_points for _ in range(config.num_seeds)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
