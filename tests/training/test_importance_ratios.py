"""Runs with importance ratios: content of the rows, and an effect on learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.exploration import select_actions
from jaxdqn.training.trainer import make_trainer
from tests.toys import masked, noisy, tiny, watched_run

RATIOS = {"importance_ratios": True, "n_step": 3}


def nothing(state):
    return ()


@pytest.mark.parametrize("replay", ["uniform", pytest.param("prioritized", marks=pytest.mark.slow)])
def test_rows_hold_the_probability_of_their_actions(replay):
    config = tiny(**RATIOS, replay=replay, epsilon_schedule="constant", epsilon_end=0.2)
    trainer = make_trainer(config, environment=noisy())
    _, end, metrics, _ = watched_run(trainer, 8, nothing)
    stored = end.replay.storage.extras[: int(end.replay.size)]
    warmup = 32 // 4
    np.testing.assert_array_equal(stored[:warmup], 0.5)
    np.testing.assert_allclose(np.unique(stored[warmup:]), [0.1, 0.9], rtol=1e-6)
    assert bool(jnp.isfinite(metrics.loss).all())


@pytest.mark.slow
def test_ratios_change_what_is_learned_and_masks_hold():
    ends = []
    for values in (RATIOS, {"n_step": 3}, {**RATIOS, "target_epsilon": 0.5, "double": True}):
        trainer = make_trainer(tiny(**values), environment=masked())
        _, end, metrics, _ = watched_run(trainer, 40, nothing)
        np.testing.assert_array_equal(metrics.illegal, 0)
        ends.append(jax.tree.leaves(end.agent.params))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in ends[-1])
    for one, other in ((0, 1), (0, 2)):
        assert any(bool((a != b).any()) for a, b in zip(ends[one], ends[other], strict=True))


@pytest.mark.parametrize("part", ["loss", "learning", "agent"])
def test_a_part_with_its_own_targets_is_rejected(part):
    with pytest.raises(ValueError, match=f"must be False with a custom {part}"):
        make_trainer(tiny(**RATIOS), environment=noisy(), **{part: select_actions})
