"""The compiled step updates the replay ring in place."""

import jax
import jax.numpy as jnp
import pytest

from jaxdqn.replay import tree_bytes
from jaxdqn.training.trainer import make_trainer
from tests.toys import quick_jit, tiny

LARGE_AND_SMALL = (1_000_000, 10_000)
RINGS = {
    "CartPole": {"env": "CartPole-v1"},
    "Catch": {"env": "Catch-bsuite"},
    "Catch, prioritised": {"env": "Catch-bsuite", "replay": "prioritized", "frame_stack": 2},
    "Catch, sequences": {
        "env": "Catch-bsuite",
        "recurrent": "gru",
        "recurrent_size": 8,
        "sequence_length": 6,
        "warmup_rows": 128,
        "replay": "prioritized",
    },
    "Catch, 3 steps, 4 frames": {"env": "Catch-bsuite", "n_step": 3, "frame_stack": 4},
    "Catch, importance ratios": {
        "env": "Catch-bsuite",
        "n_step": 3,
        "frame_stack": 2,
        "importance_ratios": True,
    },
    "Catch, importance ratios, prioritised": {
        "env": "Catch-bsuite",
        "n_step": 3,
        "importance_ratios": True,
        "replay": "prioritized",
    },
}


QUICK_RINGS = ("CartPole",)


def memory_of_chunk(config, chunk_of=lambda trainer: trainer.chunk(3)):
    """Compile a chunk with a donated state, from shapes; return its memory and the ring's bytes."""
    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    chunk = quick_jit(chunk_of(trainer), donate_argnums=0)
    memory = chunk.lower(state).compile().memory_analysis()
    return memory, tree_bytes(state.replay.storage)


def ring_config(capacity, **overrides):
    values = {"num_envs": 8, "replay_capacity": capacity, "network": "mlp"}
    return tiny(rollout_length=1, gradient_steps=1, **{**values, **overrides})


@pytest.mark.parametrize(
    "ring",
    [pytest.param(ring, marks=[pytest.mark.slow] * (ring not in QUICK_RINGS)) for ring in RINGS],
)
def test_an_iteration_of_one_step_never_copies_the_ring(ring):
    temporary = []
    for capacity in LARGE_AND_SMALL:
        memory, ring_bytes = memory_of_chunk(ring_config(capacity, **RINGS[ring]))
        assert memory.alias_size_in_bytes >= ring_bytes
        temporary.append(memory.temp_size_in_bytes)
    assert ring_bytes > 10_000 * 7
    assert temporary[0] <= temporary[1] + 1024


@pytest.mark.slow
def test_a_step_that_copies_the_ring_is_detected():
    def copying(trainer):
        def step(state, _):
            after, metrics = trainer.step(state)
            finite = jnp.isfinite(metrics.loss)
            storage = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                after.replay.storage,
                state.replay.storage,
            )
            return after._replace(replay=after.replay._replace(storage=storage)), metrics

        return lambda state: jax.lax.scan(step, state, None, length=3)

    memory, ring_bytes = memory_of_chunk(ring_config(LARGE_AND_SMALL[0]), copying)
    assert memory.temp_size_in_bytes > ring_bytes / 2
