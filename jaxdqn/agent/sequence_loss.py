"""Learning from sequences with a network that remembers (R2D2, Kapturowski et al. 2019).

A sequence is ``burn_in`` rows that only warm the network's carry, which begins as it was
when the first of them was acted on, then ``length`` rows that are learned from, then N
rows for the last of these to bootstrap from. It may span episodes; the carry starts anew
where one opens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.losses import Example, weighted_mean
from jaxdqn.types import Array, Hyper, Network, Params, PyTree, QOutput, Row

RESCALING = 1e-3
"""Epsilon of the value rescaling (Pohlen et al. 2018), as R2D2 has it."""


class Sequences(NamedTuple):
    """How rows of a sequence are used."""

    burn_in: int
    length: int
    n_step: int

    @property
    def rows(self) -> int:
        """L: rows of a sequence, all in all."""
        return self.burn_in + self.length + self.n_step


class Returns(NamedTuple):
    """The n-step returns of the rows that are learned from; leaves [length]."""

    r_t: Array
    """float32"""
    discount_t: Array
    """float32, gamma^m, or 0 after a terminal state"""
    bootstrap: Array
    """int32, place in the sequence of the observation to bootstrap from"""
    valid: Array
    """bool; no step begins where an episode's final observation stands"""


def sequences_of(config: Config) -> Sequences:
    """Return how a configuration uses its sequences."""
    return Sequences(config.burn_in, config.sequence_length, config.n_step)


def sequence_returns(
    reward: Array, terminated: Array, first: Array, gamma: Array, sequences: Sequences
) -> Returns:
    """Return the n-step returns within one sequence, by the rules of ``gather_transitions``.

    Args:
      reward: ``[L]`` float32
      terminated: ``[L]`` bool
      first: ``[L]`` bool
      gamma: ``[]`` float32
    """
    start, length, n_step = sequences.burn_in, sequences.length, sequences.n_step

    def ahead(leaf: Array, by: int) -> Array:
        return leaf[start + by : start + by + length]

    total = jnp.zeros(length, jnp.float32)
    alive, discount = jnp.ones(length, jnp.bool_), jnp.ones(length, jnp.float32)
    steps = jnp.zeros(length, jnp.int32)
    for step in range(n_step):
        total = total + jnp.where(alive, discount * ahead(reward, step), 0.0)
        discount = jnp.where(alive, discount * gamma, discount)
        steps = steps + alive.astype(jnp.int32)
        ends = alive & ahead(terminated, step)
        discount = jnp.where(ends, 0.0, discount)
        alive = alive & ~ends
        if step + 1 < n_step:  # the row after the next opens an episode
            alive = alive & ~ahead(first, step + 2)
    place = start + jnp.arange(length, dtype=jnp.int32)
    return Returns(total, discount, place + steps, ~ahead(first, 1))


def make_sequence_loss(
    network: Network,
    loss_of_example: Callable[[Example, Hyper], tuple[Array, Array]],
    *,
    double: bool,
    sequences: Sequences,
    rescale: bool,
) -> Callable[..., Any]:
    """Make the loss of a batch of sequences, a ``Row`` with leaves [B, L, ...].

    The rows' ``extras`` are the carries that they were acted on with. The sizes of a
    sequence's TD errors give one: 0.9 of the greatest and 0.1 of their mean (section 2.3).
    """

    def unroll(params: Params, key: Array, rows: Row) -> QOutput:
        """Return what the network says of all rows: leaves [L, B, ...]."""
        by_time = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (rows.obs, rows.first))
        carry = jax.tree.map(lambda leaf: leaf[:, 0], rows.extras)
        # The burn-in is forward only: no gradient flows into the carry.
        start = sequences.burn_in

        def step(carry: PyTree, row: tuple[Array, Array]) -> tuple[PyTree, QOutput]:
            output, carry = network.apply(params, key, carry, *row)
            return carry, output

        early = jax.tree.map(lambda leaf: leaf[:start], by_time)
        late = jax.tree.map(lambda leaf: leaf[start:], by_time)
        carry, warm = jax.lax.scan(step, carry, early)
        carry, warm = jax.lax.stop_gradient((carry, warm))
        _, outputs = jax.lax.scan(step, carry, late)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), warm, outputs)

    def loss_and_info(
        params: Params, key: Array, target_params: Params, rows: Row, weights: Array, hyper: Hyper
    ) -> tuple[Array, tuple[Array, Array]]:
        key_online, key_target = jax.random.split(key)
        online, target = unroll(params, key_online, rows), unroll(target_params, key_target, rows)
        returns = jax.vmap(sequence_returns, in_axes=(0, 0, 0, None, None))(
            rows.reward, rows.terminated, rows.first, hyper.gamma, sequences
        )
        start, stop = sequences.burn_in, sequences.burn_in + sequences.length

        def at_bootstrap(leaf: Array) -> Array:
            """Read [L, B, ...] where each return bootstraps: [B, length, ...]."""
            return jax.vmap(lambda each, place: each[place])(
                jnp.swapaxes(leaf, 0, 1), returns.bootstrap
            )

        learned = jax.tree.map(lambda leaf: jnp.swapaxes(leaf[start:stop], 0, 1), online)
        shape = returns.r_t.shape
        examples = Example(
            online_tm1=learned,
            a_tm1=rows.action[:, start:stop],
            r_t=returns.r_t,
            discount_t=returns.discount_t,
            target_t=jax.tree.map(at_bootstrap, target),
            selector_t=jax.lax.stop_gradient(at_bootstrap(online.q_values)) if double else (),
            temperature=(),
            rescaling=jnp.full(shape, RESCALING) if rescale else (),
        )
        over_rows = jax.vmap(jax.vmap(loss_of_example, in_axes=(0, None)), in_axes=(0, None))
        losses, abs_td = over_rows(examples, hyper)
        valid = returns.valid.astype(jnp.float32)
        # Each valid row weighs the same in every batch: by the rows, not by those that are valid.
        by_sequence = jnp.sum(jnp.where(returns.valid, losses, 0.0), axis=1) / sequences.length
        sizes = jnp.where(returns.valid, abs_td, 0.0)
        mean = jnp.sum(sizes, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1.0)
        chosen = jnp.take_along_axis(learned.q_values, examples.a_tm1[..., None], axis=-1)[..., 0]
        q_mean = jnp.sum(chosen * valid) / jnp.maximum(jnp.sum(valid), 1.0)
        sizes = 0.9 * jnp.max(sizes, axis=1) + 0.1 * mean
        return weighted_mean(by_sequence, weights), (sizes, q_mean)

    return loss_and_info
