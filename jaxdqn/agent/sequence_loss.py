"""Loss of a batch of sequences, for recurrent networks (R2D2, Kapturowski et al. 2019).

A sequence has three parts: ``burn_in`` rows that only update the network's carry, ``length``
learned rows whose losses are computed, and N more rows from which the last learned rows bootstrap.
The initial carry is that stored when the action of the first row was chosen. A sequence may span
episodes; the carry is reset at the first row of each episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.losses import Example, legal_values, target_metrics, weighted_mean
from jaxdqn.types import Array, Hyper, Network, Params, PyTree, QOutput, Row

RESCALING = 1e-3
"""Epsilon of the value rescaling (Pohlen et al. 2018), as in R2D2."""
MAX_SHARE = 0.9
"""Eta, weight of the maximum |TD error| in the priority of a sequence; the mean has weight 1 -
eta."""


class Sequences(NamedTuple):
    """Number of rows in each part of a sequence."""

    burn_in: int
    length: int
    n_step: int

    @property
    def rows(self) -> int:
        """L, total number of rows in a sequence."""
        return self.burn_in + self.length + self.n_step

    @property
    def stop(self) -> int:
        """Index after the last learned row."""
        return self.burn_in + self.length


class Returns(NamedTuple):
    """N-step returns of the learned rows; leaves [length]."""

    r_t: Array
    """float32, sum of discounted rewards"""
    discount_t: Array
    """float32, gamma^m, or 0 after a terminal state"""
    bootstrap: Array
    """int32, index of the bootstrap observation in the sequence"""
    valid: Array
    """bool, False for a row that holds the final observation of an episode, where no step starts"""


def sequences_of(config: Config) -> Sequences:
    """Return the configured sizes of the sequences."""
    return Sequences(config.burn_in, config.sequence_length, config.n_step)


def sequence_returns(
    reward: Array, terminated: Array, first: Array, gamma: Array, sequences: Sequences
) -> Returns:
    """Compute the n-step returns within one sequence, by the rules of ``gather_transitions``.

    Args:
      reward: ``[L]`` float32
      terminated: ``[L]`` bool
      first: ``[L]`` bool
      gamma: ``[]`` float32, discount factor of one step.
      sequences: sizes of the parts of the sequence.
    """
    start, length, n_step = sequences.burn_in, sequences.length, sequences.n_step

    def ahead(leaf: Array, steps: int) -> Array:
        return leaf[start + steps : start + steps + length]

    total = jnp.zeros(length, jnp.float32)
    alive, discount = jnp.ones(length, jnp.bool_), jnp.ones(length, jnp.float32)
    num_steps = jnp.zeros(length, jnp.int32)
    for step in range(n_step):
        total = total + jnp.where(alive, discount * ahead(reward, step), 0.0)
        discount = jnp.where(alive, discount * gamma, discount)
        num_steps = num_steps + alive.astype(jnp.int32)
        ends = alive & ahead(terminated, step)
        discount = jnp.where(ends, 0.0, discount)
        alive = alive & ~ends
        if step + 1 < n_step:
            # If row step + 2 starts an episode, row step + 1 holds the final observation of the
            # episode before it: bootstrap there.
            alive = alive & ~ahead(first, step + 2)
    index = start + jnp.arange(length, dtype=jnp.int32)
    return Returns(total, discount, index + num_steps, ~ahead(first, 1))


def make_sequence_loss(
    network: Network,
    loss_of_example: Callable[[Example, Hyper], tuple[Array, Array]],
    *,
    double: bool,
    sequences: Sequences,
    rescale: bool,
) -> Callable[..., Any]:
    """Make the loss of a batch of sequences, a ``Row`` with leaves [B, L, ...].

    Its signature is ``loss_and_info(params, key, target_params, rows, weights[B], hyper)
    -> (loss, (abs_td[B], q_mean, extra))``. The ``extras`` of the rows hold the carry before the
    first row, leaves [B, ...]. The ``abs_td`` of a sequence, which determines its priority, is 0.9
    times the maximum plus 0.1 times the mean of |TD error| over the valid learned rows (section
    2.3). For the arguments see ``make_agent``; ``loss_of_example`` also returns the |TD error|.
    """

    def loss_and_info(
        params: Params, key: Array, target_params: Params, rows: Row, weights: Array, hyper: Hyper
    ) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
        key_online, key_target = jax.random.split(key)
        rows = rows._replace(obs=_without_terminal(rows))
        online = _outputs(network, sequences, params, key_online, rows)
        target = _outputs(network, sequences, target_params, key_target, rows)
        returns = jax.vmap(sequence_returns, in_axes=(0, 0, 0, None, None))(
            rows.reward, rows.terminated, rows.first, hyper.gamma, sequences
        )
        examples = _examples(rows, online, target, returns, sequences, double, rescale)
        over_rows = jax.vmap(jax.vmap(loss_of_example, in_axes=(0, None)), in_axes=(0, None))
        losses, abs_td = over_rows(examples, hyper)
        valid = returns.valid.astype(jnp.float32)
        num_valid = jnp.maximum(jnp.sum(valid, axis=1), 1.0)
        # Divide by the number of all learned rows, so that a valid row has the same weight in every
        # sequence.
        by_sequence = jnp.sum(jnp.where(returns.valid, losses, 0.0), axis=1) / sequences.length
        abs_td = jnp.where(returns.valid, abs_td, 0.0)
        mean = jnp.sum(abs_td, axis=1) / num_valid
        q_values, actions = examples.online_tm1.q_values, examples.a_tm1
        chosen_q = jnp.take_along_axis(q_values, actions[..., None], axis=-1)[..., 0]
        q_mean = jnp.sum(chosen_q * valid) / jnp.maximum(jnp.sum(valid), 1.0)
        abs_td = MAX_SHARE * jnp.max(abs_td, axis=1) + (1.0 - MAX_SHARE) * mean
        extra = jax.tree.map(
            lambda leaf: jnp.sum(leaf * valid) / jnp.maximum(jnp.sum(valid), 1.0),
            jax.vmap(jax.vmap(target_metrics))(examples),
        )
        return weighted_mean(by_sequence, weights), (abs_td, q_mean, extra)

    return loss_and_info


def _without_terminal(rows: Row) -> Array:
    """Return the observations with zeros in place of terminal observations.

    The final observation of a terminated episode may be arbitrary. Its value is not used, but a
    NaN in it would reach the gradient of the parameters as 0 times NaN. The final observation of
    a truncated episode is kept, because the target reads its value. The first row of a sequence is
    never a bootstrap row, so it counts as terminal. The row after the last one is unknown, so the
    last row counts as final.
    """
    if not jnp.issubdtype(rows.obs.dtype, jnp.floating):
        return rows.obs
    yes = jnp.ones_like(rows.first[:, :1])
    terminal = jnp.concatenate([yes, rows.terminated[:, :-1]], axis=1)
    final = jnp.concatenate([rows.first[:, 1:], yes], axis=1)
    unused = (terminal & final).reshape(*rows.first.shape, *(1,) * (rows.obs.ndim - 2))
    return jnp.where(unused, jnp.zeros_like(rows.obs), rows.obs)


def unroll(
    network: Network, params: Params, key: Array, carry: PyTree, obs: Array, first: Array
) -> tuple[QOutput, PyTree]:
    """Apply a network to consecutive rows: ``network.unroll``, or a scan of ``network.apply``.

    Args:
      network: the Q-network.
      params: parameters of the network.
      key: random key of the network's noise; the noise is the same in every row.
      carry: leaves [B, ...], the carry before the first row.
      obs: ``[L, B, O]``, observations.
      first: ``[L, B]`` bool, True for the first row of an episode.

    Returns:
      The outputs, leaves [L, B, ...], and the carry after the last row.
    """
    if network.unroll is not None:
        return network.unroll(params, key, carry, obs, first)

    def step(carry: PyTree, row: tuple[Array, Array]) -> tuple[PyTree, QOutput]:
        output, carry = network.apply(params, key, carry, *row)
        return carry, output

    carry, outputs = jax.lax.scan(step, carry, (obs, first))
    return outputs, carry


def _outputs(
    network: Network, sequences: Sequences, params: Params, key: Array, rows: Row
) -> QOutput:
    """Return the network's outputs for the rows after the burn-in, leaves [length + N, B, ...]."""
    by_time = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (rows.obs, rows.first))
    carry = rows.extras
    if sequences.burn_in > 0:
        # The burn-in runs forward only: no gradient flows into the carry.
        burn_in = jax.tree.map(lambda leaf: leaf[: sequences.burn_in], by_time)
        _, carry = unroll(network, jax.lax.stop_gradient(params), key, carry, *burn_in)
    later = jax.tree.map(lambda leaf: leaf[sequences.burn_in :], by_time)
    return unroll(network, params, key, carry, *later)[0]


def _examples(
    rows: Row,
    online: QOutput,
    target: QOutput,
    returns: Returns,
    sequences: Sequences,
    double: bool,
    rescale: bool,
) -> Example:
    """Return the examples of the learned rows, leaves [B, length, ...].

    The network outputs ``online`` and ``target`` have leaves [length + N, B, ...].
    """

    def at_bootstrap(leaf: Array) -> Array:
        """Index [length + N, B, ...] at the bootstrap of each return: [B, length, ...]."""
        return jax.vmap(lambda sequence, index: sequence[index])(
            jnp.swapaxes(leaf, 0, 1), returns.bootstrap - sequences.burn_in
        )

    legal_t = jax.tree.map(at_bootstrap, _legal(rows, sequences))

    def legal_only(output: QOutput) -> QOutput:
        return output._replace(q_values=legal_values(output.q_values, legal_t))

    return Example(
        online_tm1=jax.tree.map(lambda leaf: jnp.swapaxes(leaf[: sequences.length], 0, 1), online),
        a_tm1=rows.action[:, sequences.burn_in : sequences.stop],
        r_t=returns.r_t,
        discount_t=returns.discount_t,
        target_t=legal_only(jax.tree.map(at_bootstrap, target)),
        selector_t=jax.lax.stop_gradient(legal_values(at_bootstrap(online.q_values), legal_t))
        if double
        else (),
        temperature=(),
        rescaling=jnp.full(returns.r_t.shape, RESCALING, jnp.float32) if rescale else (),
    )


def _legal(rows: Row, sequences: Sequences) -> PyTree:
    """Return the masks of the rows after the burn-in, [length + N, B, A], or empty."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1)[sequences.burn_in :], rows.legal)
