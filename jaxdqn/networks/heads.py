"""Heads: from features ``[B, F]`` to values or distributions for each action.

The last layer and all later operations compute in float32. bfloat16 has 8 significant bits, so
values near 100 would be 0.5 apart, which is more than a typical TD error.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdqn.losses.categorical import categorical_mean
from jaxdqn.losses.quantile import quantile_midpoints
from jaxdqn.networks.layers import NOISE, Layers
from jaxdqn.networks.matmul import dot_general
from jaxdqn.types import Array, Atoms, QOutput, Quantiles


class Head(nn.Module):
    """Base of all heads: Z numbers for each action.

    With ``dueling`` (Wang et al. 2016, eq. 9) they are the sum of two streams: the value of the
    state, and the advantage of each action minus the mean advantage over actions. With ``hidden``
    each stream has a separate hidden layer, as in the paper.
    """

    num_actions: int
    outputs: int = 1
    dueling: bool = False
    hidden: int | None = None
    layers: Layers = Layers()

    def action_outputs(self, features: Array) -> Array:
        """Return ``[..., A, Z]`` float32 for features ``[..., F]``; call it in a compact method."""

        def stream(width: int) -> Array:
            x = features if self.hidden is None else self.layers.hidden(features, self.hidden)
            x = self.layers.dense(width * self.outputs)(x.astype(jnp.float32))
            return x.reshape(*x.shape[:-1], width, self.outputs)

        if not self.dueling:
            return stream(self.num_actions)
        value, advantage = stream(1), stream(self.num_actions)
        return value + advantage - jnp.mean(advantage, axis=-2, keepdims=True)


class LinearHead(Head):
    """One value for each action."""

    @nn.compact
    def __call__(self, features: Array) -> QOutput:
        """Return the values, without a distribution."""
        return QOutput(q_values=self.action_outputs(features)[..., 0])


class CategoricalHead(Head):
    """A distribution over evenly spaced returns for each action (C51, Bellemare et al. 2017)."""

    value_min: float = -10.0
    value_max: float = 10.0

    @nn.compact
    def __call__(self, features: Array) -> QOutput:
        """Return the means, and the logits and their atoms as distribution (``Atoms``)."""
        logits = self.action_outputs(features)
        batch, _, count = logits.shape
        atoms = jnp.linspace(self.value_min, self.value_max, count, dtype=jnp.float32)
        means = jax.vmap(categorical_mean, in_axes=(0, None))(logits, atoms)
        atoms = jnp.broadcast_to(atoms[None, :], (batch, count))
        return QOutput(q_values=means, distribution=Atoms(logits, atoms))


class QuantileHead(Head):
    """Quantiles of the return, at fixed fractions, for each action (QR-DQN)."""

    @nn.compact
    def __call__(self, features: Array) -> QOutput:
        """Return the means, and the ``Quantiles`` as distribution."""
        values = self.action_outputs(features)
        batch, _, count = values.shape
        fractions = jnp.broadcast_to(quantile_midpoints(count)[None, :], (batch, count))
        return QOutput(jnp.mean(values, axis=-1), Quantiles(values, fractions))


class ImplicitQuantileHead(Head):
    """Quantiles at fractions sampled on every call (IQN, Dabney et al. 2018b).

    The features are multiplied by an embedding of the fraction: a dense layer with ReLU over
    ``cos(pi i fraction)`` (eq. 4). The fractions are drawn from the stream ``noise``. Without
    that stream they are the midpoints of ``samples`` equal parts of [0, 1].
    """

    samples: int = 32
    """Number of fractions, both for the loss and for the mean that selects actions."""
    cosines: int = 64
    """Number of cosines in the embedding."""

    @nn.compact
    def __call__(self, features: Array) -> QOutput:
        """Return the means over the fractions, and the ``Quantiles`` as distribution."""
        batch, width = features.shape
        if self.is_initializing() or not self.has_rng(NOISE):
            fractions = jnp.broadcast_to(
                quantile_midpoints(self.samples)[None, :], (batch, self.samples)
            )
        else:
            fractions = jax.random.uniform(self.make_rng(NOISE), (batch, self.samples), jnp.float32)
        order = jnp.arange(self.cosines, dtype=jnp.float32).reshape(1, 1, -1)
        waves = jnp.cos(jnp.pi * order * fractions[:, :, None])
        embedding = nn.relu(nn.Dense(width, dot_general=dot_general)(waves)).astype(features.dtype)
        values = self.action_outputs(features[:, None, :] * embedding)[..., 0]  # [B, Z, A]
        values = jnp.swapaxes(values, 1, 2)
        return QOutput(jnp.mean(values, axis=-1), Quantiles(values, fractions))
