"""Drive flashbax's flat buffer: add 10 rows and draw a batch, in a scan."""

from __future__ import annotations

import time
from typing import Any

from .channel import Channel, import_package, jax_device
from .work import BATCH_SIZE, CAPACITY, ENV_STEPS_PER_GRADIENT_STEP


def flashbax(channel: Channel, _: str, gradient_steps: int) -> None:
    """Drive a full buffer of CartPole rows; a draw counts as a gradient step."""
    jax, jnp = import_package("jax", "jax"), import_package("jax.numpy", "jax")
    buffer = import_package("flashbax", "flashbax").make_flat_buffer(
        max_length=CAPACITY, min_length=BATCH_SIZE, sample_batch_size=BATCH_SIZE,
        add_batch_size=ENV_STEPS_PER_GRADIENT_STEP,
    )  # fmt: skip

    def rows(number: Any) -> dict[str, Any]:
        count = (ENV_STEPS_PER_GRADIENT_STEP,)
        return {
            "obs": jnp.full((*count, 4), number, jnp.float32),
            "action": jnp.full(count, number % 2, jnp.int32),
            "reward": jnp.ones(count, jnp.float32),
            "done": jnp.full(count, number % 50 == 0),
        }

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        key, number, state = carry
        key, key_sample = jax.random.split(key)
        state = buffer.add(state, rows(number))
        pairs = buffer.sample(state, key_sample).experience
        read = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(pairs))
        return (key, number + 1, state), read

    def run(carry: Any) -> tuple[Any, Any]:
        carry, read = jax.lax.scan(step, carry, None, length=gradient_steps)
        return carry, jnp.sum(read)

    example = jax.tree.map(lambda leaf: leaf[0], rows(jnp.int32(0)))
    carry: Any = (jax.random.key(0), jnp.int32(0), buffer.init(example))
    for _index in range(CAPACITY // ENV_STEPS_PER_GRADIENT_STEP):
        carry = (carry[0], carry[1] + 1, buffer.add(carry[2], rows(carry[1])))
    start = time.perf_counter()
    compiled = jax.jit(run, donate_argnums=0).lower(carry).compile()
    channel.ready(time.perf_counter() - start, jax_device())
    while channel.wait_for_request():
        start = time.perf_counter()
        carry = jax.block_until_ready(compiled(carry))[0]
        channel.send(
            seconds=time.perf_counter() - start,
            env_steps=gradient_steps * ENV_STEPS_PER_GRADIENT_STEP,
            gradient_steps=gradient_steps,
        )
