"""Recurrent networks: a torso, a recurrent cell and a head."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdqn.loops import scan
from jaxdqn.types import Array, Network, Params, PyTree, QOutput


class RecurrentQNetwork(nn.Module):
    """Torso, recurrent cell that is reset at the first row of an episode, and head."""

    torso: nn.Module
    cell: nn.RNNCellBase
    head: nn.Module

    def __call__(self, carry: PyTree, obs: Array, first: Array) -> tuple[PyTree, QOutput]:
        """Return the next carry, and the head's output for observations ``[B, O]``."""
        carry, features = self.advance(carry, self.encode(obs), first)
        return carry, self.decode(features)

    def encode(self, obs: Array) -> Array:
        """Return the torso's features [B, F] for observations ``[B, O]``."""
        return self.torso(obs).astype(jnp.float32)

    def advance(self, carry: PyTree, features: Array, first: Array) -> tuple[PyTree, Array]:
        """Return the next carry and the cell's output for features ``[B, F]``."""

        def reset(leaf: Array) -> Array:
            opens = first.reshape(-1, *(1,) * (leaf.ndim - 1))
            return jnp.where(opens, jnp.zeros_like(leaf), leaf)

        carry, features = self.cell(jax.tree.map(reset, carry), features)
        return carry, features

    def decode(self, features: Array) -> QOutput:
        """Return the head's output for the cell's output."""
        return self.head(features)


def make_cell(kind: str, size: int) -> nn.RNNCellBase:
    """Make an LSTM (Hochreiter and Schmidhuber 1997) or a GRU (Cho et al. 2014)."""
    return nn.OptimizedLSTMCell(size) if kind == "lstm" else nn.GRUCell(size)


def from_recurrent_module(module: RecurrentQNetwork) -> Network:
    """Make a network from a recurrent module; its carry is the cell state, initially zero."""

    def initial_carry(batch_size: int) -> PyTree:
        size = module.cell.features
        zeros = jnp.zeros((batch_size, size), jnp.float32)
        return (zeros, zeros) if isinstance(module.cell, nn.OptimizedLSTMCell) else zeros

    def init(key: Array, obs: Array) -> Params:
        batch_size = obs.shape[0]
        return module.init(key, initial_carry(batch_size), obs, jnp.zeros(batch_size, jnp.bool_))

    def apply(
        params: Params, key: Array | None, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        del key
        output: Any
        carry, output = module.apply(params, carry, obs, first)
        return output, carry

    def unroll(
        params: Params, key: Array | None, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        """Apply torso and head to all rows at once; only the cell runs row by row."""
        del key
        rows = first.shape

        def step(carry: PyTree, inputs: tuple[Array, Array]) -> Any:
            return module.apply(params, carry, *inputs, method="advance")

        features: Any = module.apply(params, obs.reshape(-1, *obs.shape[2:]), method="encode")
        carry, outputs = scan(
            step, carry, (features.reshape(*rows, -1), first), unroll=True, pack=False
        )
        output: Any = module.apply(params, outputs.reshape(-1, outputs.shape[-1]), method="decode")
        return jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[1:]), output), carry

    return Network(init=init, apply=apply, initial_carry=initial_carry, unroll=unroll)


def from_custom_module(module: Any) -> Network:
    """Make a network from a custom recurrent flax module.

    Args:
      module: ``module(carry, obs[B, O], first[B]) -> (carry, q[B, A])`` (or ``QOutput`` instead of
        q). It must reset its carry where ``first`` is True. ``module.initial_carry(batch_size)``
        returns the carry before the first row.
    """

    def init(key: Array, obs: Array) -> Params:
        batch_size = obs.shape[0]
        first = jnp.zeros(batch_size, jnp.bool_)
        return module.init(key, module.initial_carry(batch_size), obs, first)

    def apply(
        params: Params, key: Array | None, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        del key
        carry, output = module.apply(params, carry, obs, first)
        if not isinstance(output, QOutput):
            output = QOutput(q_values=output)
        return output._replace(q_values=output.q_values.astype(jnp.float32)), carry

    return Network(init=init, apply=apply, initial_carry=module.initial_carry)
