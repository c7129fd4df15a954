"""Environments on the host with a learner over several devices."""

import jax
import numpy as np
import pytest

from jaxdqn.communication.collectives import device_collectives
from jaxdqn.config.config import replace
from jaxdqn.parallel import across_devices
from jaxdqn.parallel.vector_parallel import vector_across_devices
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_programs import jit_vector_programs
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import make_vector_trainer
from tests.toys import OPTIMISED, QUICK, assert_identical, bitwise_jit, tiny
from tests.training.test_vector_trainer import ENVIRONMENT, on_host

FIELDS = {
    "devices": 2, "hidden_sizes": (8,), "rollout_length": 2, "gradient_steps": 2,
    "chunk_iterations": 3,
}  # fmt: skip


def run_host(mapping, options, iterations=7, **fields):
    config = tiny(**FIELDS, overlap=False, **fields)
    trainer = make_vector_trainer(config, on_host(), collectives=device_collectives(2))
    trainer = vector_across_devices(trainer, jax.devices()[:2], mapping=mapping)
    runner = VectorRunner(trainer, jit_vector_programs(trainer, options))
    start = runner.init(jax.random.key(3), None)
    before = jax.tree.map(np.asarray, start.agent.params)
    return before, *runner.chunk(start, iterations)


@pytest.mark.slow
def test_a_run_over_devices_is_bitwise_that_of_the_same_environment_on_the_devices():
    _, host, (metrics, counters) = run_host("shard_map", OPTIMISED)
    trainer = make_trainer(
        tiny(**FIELDS), environment=ENVIRONMENT, collectives=device_collectives(2)
    )
    trainer = across_devices(trainer, jax.devices()[:2])
    device, expected = bitwise_jit(trainer.chunk(7))(bitwise_jit(trainer.init)(jax.random.key(3)))
    assert_identical(host, device._replace(actor=device.actor._replace(env_state=())))
    assert_identical(counters, trainer.counters(device))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, expected)


@pytest.mark.slow
def test_pmap_and_shard_map_agree_and_the_replicas_stay_equal():
    before, by_shard_map, _ = run_host("shard_map", QUICK)
    _, by_pmap, _ = run_host("pmap", QUICK)
    assert_identical(by_shard_map, by_pmap)
    params = jax.tree.leaves(by_shard_map.agent.params)
    assert all(np.array_equal(leaf[0], leaf[1]) for leaf in params)
    changed = [
        not np.array_equal(a, b) for a, b in zip(params, jax.tree.leaves(before), strict=True)
    ]
    assert any(changed)
    obs = np.asarray(by_shard_map.replay.storage.obs)
    assert obs.shape[0] == 2


@pytest.mark.slow
def test_a_run_over_devices_is_recorded_and_resumed(tmp_path):
    config = tiny(
        **FIELDS, total_rows=240, eval_every=0, eval_episodes=4, checkpoint_every=1,
        checkpoint_signals=(),
    )  # fmt: skip
    config = replace(config, checkpoint_every=40)
    out = tmp_path / "run"
    result = run(config, out=out, environment=on_host())
    assert (result.summary["devices"], result.summary["mapping"]) == (2, "shard_map")
    rows = result.summary["rows"]
    resumed = run(replace(config, total_rows=400), out=out, environment=on_host(), resume=True)
    assert resumed.summary["rows"] > rows
    counts = [record["rows"] for record in read_lines(out / "metrics.jsonl")]
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_devices", 2), ("average_every", 2)],
)
def test_mappings_that_need_the_environment_on_the_device_are_rejected(field, value):
    fields = {**FIELDS, field: value}
    with pytest.raises(ValueError, match=rf"^{field}={value}: must be .* with an environment on"):
        make_vector_trainer(tiny(**fields), on_host())
