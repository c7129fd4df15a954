"""Random configurations that validation accepts can be trained."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from jaxdqn.config.config import Config
from jaxdqn.parallel.build import make_mapped_trainer
from tests.config.cases import PLAUSIBLE, check_rejected_or_consistent
from tests.toys import noisy, quick_jit

RUNS = 60


@pytest.mark.slow
def test_accepted_configurations_run_two_chunks_with_finite_numbers():
    accepted = []

    @settings(max_examples=2_000, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(PLAUSIBLE)
    def collect(overrides):
        if check_rejected_or_consistent(overrides) and overrides not in accepted:
            accepted.append(overrides)

    collect()
    assert len(accepted) >= RUNS
    for overrides in accepted[:: len(accepted) // RUNS][:RUNS]:
        config = Config(**overrides)
        trainer = make_mapped_trainer(config, environment=noisy())
        state = quick_jit(trainer.init)(jax.random.key(config.seed))
        chunk = quick_jit(trainer.chunk(min(config.iterations_per_chunk, 20)))
        for _ in range(2):
            state, metrics = chunk(state)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics)), overrides
            for leaf in jax.tree.leaves((state.agent, state.replay)):
                if np.issubdtype(leaf.dtype, np.floating):
                    assert np.isfinite(leaf).all(), overrides
