"""Configurations and compiled chunks of mapped trainers."""

import jax

from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.training.trainer import make_trainer
from tests.toys import bitwise_jit, noisy, tiny

MAPPINGS = ("shard_map", "pmap")


def config_over(devices, **overrides):
    """Return a small configuration over ``devices``."""
    values = {
        "num_envs": 8,
        "batch_size": 16,
        "replay_capacity": 1024,
        "epsilon_decay_rows": 500,
        "clip_norm": 0.5,
    }
    return tiny(devices=devices, **{**values, **overrides})


def trainer_over_devices(config, mapping="shard_map"):
    """Return the configuration's trainer mapped over ``config.devices``."""
    trainer = make_trainer(
        config, environment=noisy(), collectives=device_collectives(config.devices)
    )
    return across_devices(trainer, jax.devices()[: config.devices], mapping=mapping)


def compiled_chunk(trainer, iterations, jit=bitwise_jit):
    """Return the state's shapes and a chunk compiled as in a run: state sharded and donated."""
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    out = None
    if trainer.sharding is not None:
        out = trainer.sharding(state)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            out,
        )
    chunk = jit(trainer.chunk(iterations), donate_argnums=0, out_shardings=(out, None))
    return state, chunk.lower(state).compile()
