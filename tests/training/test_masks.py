"""Masks of legal actions in training: no variant takes an illegal action."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config
from jaxdqn.training.trainer import make_trainer
from tests.toys import POISON, masked, tiny, watched_run

VARIANTS = {
    "dqn": {},
    "n_step": {"n_step": 3},
    "double": {"double": True},
    "soft": {"bootstrap": "soft"},
    "munchausen": {"bootstrap": "munchausen"},
    "categorical": {"loss": "categorical", "double": True},
    "quantile": {"loss": "quantile"},
    "implicit quantile": {"loss": "implicit_quantile", "bootstrap": "munchausen"},
    "noisy": {"noisy": True},
    "boltzmann": {"exploration": "boltzmann"},
    "repeat": {"epsilon_repeat": 0.5},
    "r2d2": {"recurrent": "lstm", "sequence_length": 4, "burn_in": 2, "double": True},
    "prioritized": {"replay": "prioritized"},
    "pooled resets": {"reset": "pooled"},
    "frame stack": {"frame_stack": 2},
}
PQN = {
    "algorithm": "pqn",
    "num_envs": 4,
    "rollout_length": 4,
    "minibatches": 2,
    "total_rows": 400,
    "log_every": 200,
    "hidden_sizes": (16,),
}


def config_of(variant):
    return Config(**PQN) if variant == "pqn" else tiny(**VARIANTS[variant])


def rewards(state):
    return state.actor.timestep.reward


@pytest.mark.parametrize("variant", [*VARIANTS, "pqn"])
def test_no_variant_takes_an_illegal_action(variant):
    trainer = make_trainer(config_of(variant), environment=masked())
    start, end, metrics, seen = watched_run(trainer, 40, rewards)
    np.testing.assert_array_equal(metrics.illegal, 0)
    assert seen.max() < POISON
    assert int(metrics.episodes.sum()) > 10
    leaves = jax.tree.leaves((end.agent.params, metrics.loss))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), start.agent.params, end.agent.params)
    assert any(jax.tree.leaves(changed))
    if variant != "pqn":  # the warm-up took none either
        assert end.replay.storage.reward.max() < POISON


def test_without_its_mask_the_environment_is_poisoned():
    _, _, metrics, seen = watched_run(
        make_trainer(tiny(), environment=masked(mask=False)), 40, rewards
    )
    assert seen.max() == POISON
    assert metrics.illegal == ()
