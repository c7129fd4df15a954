"""Members of the family under the mappings: each runs, learns, and keeps its replicas equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.parallel.build import make_mapped_trainer
from tests.toys import noisy, quick_jit, tiny

MEMBERS = {
    "pqn": {
        "algorithm": "pqn", "num_envs": 8, "rollout_length": 4, "minibatches": 2, "epochs": 2,
        "batch_size": 128, "replay_capacity": 32_768, "warmup_rows": 1_024, "total_rows": 4_000,
    },
    "recurrent": {
        "recurrent": "gru", "sequence_length": 4, "burn_in": 1, "warmup_rows": 64,
        "replay": "prioritized", "sequence_stride": 3,
    },
    "rainbow": {
        "double": True, "dueling": True, "noisy": True, "n_step": 3, "replay": "prioritized",
        "loss": "categorical",
    },
}  # fmt: skip
MAPPINGS = {
    "shard_map": {"devices": 2},
    "pmap": {"devices": 2, "mapping": "pmap"},
    "averaging": {"devices": 2, "average_every": 4, "target_period": 4},
    "int8": {"devices": 2, "compression": "int8"},
    "mesh": {"devices": 4, "model_devices": 2, "hidden_sizes": (512, 512)},
    "population": {"num_seeds": 4, "devices": 2, "population": "vmap"},
}


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_learns_under_every_mapping(member, mapping):
    fields = {**MEMBERS[member], **MAPPINGS[mapping]}
    if member == "pqn":
        fields.pop("target_period", None)
    config = tiny(**fields)
    trainer = make_mapped_trainer(config, environment=noisy())
    learners = config.learners
    keys = jax.random.split(jax.random.key(0), learners) if learners > 1 else jax.random.key(0)
    out = None
    if trainer.sharding is not None:
        out = trainer.sharding(jax.eval_shape(trainer.init, keys))
    start = quick_jit(trainer.init, out_shardings=out)(keys)
    chunk = trainer.chunk(4)
    end, metrics = quick_jit(chunk, out_shardings=(out, None))(start)
    assert not np.asarray(metrics.skipped).any()
    assert np.isfinite(np.asarray(metrics.loss)).all()
    for before, after in zip(
        jax.tree.leaves(start.agent.params), jax.tree.leaves(end.agent.params), strict=True
    ):
        assert bool(jnp.isfinite(after).all())
        assert (np.asarray(before) != np.asarray(after)).any()
        if config.replicas > 1:
            np.testing.assert_array_equal(after[0], after[1])
        else:
            assert (np.asarray(after[0]) != np.asarray(after[1])).any(), "identical learners"
