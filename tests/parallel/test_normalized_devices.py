"""Statistics of observations over devices, and in checkpoints and exported policies."""

import jax
import numpy as np
import pytest

from jaxdqn.config.config import replace
from jaxdqn.export.policy import load_run
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.run.runner import run
from tests.parallel.cases import compiled_chunk, config_over, trainer_over_devices
from tests.storage.runs import CONFIG, interrupted
from tests.toys import noisy, quick_jit, quick_runs
from tests.trees import assert_identical, slice_of


def chunk_of(mapping):
    trainer = trainer_over_devices(config_over(2, normalize_observations=True), mapping)
    _, chunk = compiled_chunk(trainer, 5, quick_jit)
    state = quick_jit(trainer.init)(jax.random.key(0))
    return chunk(jax.device_put(state, trainer.sharding(state)))[0]


@pytest.mark.slow
def test_devices_agree_on_the_statistics_of_all_rows():
    state = chunk_of("shard_map")
    statistics = state.agent.params.observations
    assert_identical(slice_of(statistics, 0), slice_of(statistics, 1))
    count = int(statistics.rows[0])
    assert count == 32 + 5 * 8
    # [D, T, E, O]: the rows of both devices, none of them overwritten.
    obs = np.asarray(state.replay.ring.rows.obs)
    rows = obs[:, : count // obs.shape[2] // 2].reshape(-1, 2)
    np.testing.assert_allclose(statistics.mean[0], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance[0], rows.var(0), rtol=1e-4)


@pytest.mark.slow
def test_pmap_equals_shard_map_bitwise():
    assert_identical(chunk_of("pmap"), chunk_of("shard_map"))


@pytest.mark.slow
def test_a_mesh_splits_the_layers_and_not_the_statistics():
    config = config_over(2, model_devices=2, hidden_sizes=(32, 1024), normalize_observations=True)
    trainer = make_mapped_trainer(config, environment=noisy())
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    layout = trainer.sharding(shapes).agent
    for tree in (layout.params.network, layout.target_params.network, layout.opt_state):
        assert any("model" in str(each.spec) for each in jax.tree.leaves(tree))
    for each in jax.tree.leaves(layout.params.observations):
        assert "model" not in str(each.spec)


@pytest.mark.slow
def test_statistics_are_saved_resumed_and_exported(tmp_path):
    config = replace(CONFIG, normalize_observations=True)
    with quick_runs():
        whole = run(config, out=tmp_path / "whole", environment=noisy())
        interrupted(tmp_path / "parts", config)
        resumed = run(config, out=tmp_path / "parts", resume=True, environment=noisy())
    assert_identical(resumed.state, whole.state)
    _, _, params = load_run(tmp_path / "parts", "last", environment=noisy())
    assert_identical(params, whole.state.agent.params)
    assert params.observations.rows == whole.summary["rows"]
