"""Dense layers, plain or noisy, and how a network makes its own of them."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdqn.networks.matmul import dot_general, product
from jaxdqn.types import Array

NOISE = "noise"
"""Name of the stream of random numbers that a flax module's noise is drawn from; an ``apply``
that is not given it has no noise."""
_FLOAT32 = jnp.dtype("float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """What all dense layers of a network have in common."""

    noisy_sigma: float | None = None
    """Initial noise of ``NoisyDense``; None for plain layers."""
    layer_norm: bool = False
    """Normalise what goes into each activation (Ba et al. 2016)."""
    dtype: jnp.dtype = _FLOAT32
    """Compute type of hidden layers."""

    def dense(self, width: int, dtype: jnp.dtype = _FLOAT32) -> nn.Module:
        """Return a dense layer without activation; call it in a compact method."""
        if self.noisy_sigma is None:
            return nn.Dense(width, dtype=dtype, dot_general=dot_general)
        return NoisyDense(width, self.noisy_sigma, dtype)

    def hidden(self, x: Array, width: int) -> Array:
        """Apply a hidden layer to ``[..., F]``; call it in a compact method."""
        return self.activate(self.dense(width, self.dtype)(x))

    def activate(self, x: Array) -> Array:
        """Normalise, if that is asked for, and rectify; call it in a compact method."""
        if self.layer_norm:
            x = nn.LayerNorm(dtype=self.dtype)(x)
        return nn.relu(x)


class NoisyDense(nn.Module):
    """A dense layer with factorised Gaussian noise on its parameters (Fortunato et al. 2018).

    ``y = (mu_w + sigma_w * e) x + mu_b + sigma_b * f(e_out)`` with ``e = f(e_in) f(e_out)^T``
    and ``f(e) = sign(e) sqrt(|e|)`` (eqs. 9 to 11), the noise shared by all rows of x. As the
    noise is a product it is taken on the way in and on the way out, so that under ``vmap``
    each of many environments has noise of its own for one more matrix product, and no
    environment a matrix of its own.

    Drawn from the stream ``noise``; without that the layer is ``mu_w x + mu_b``.
    """

    features: int
    sigma: float = 0.5
    """sigma_0, over the root of the layer's inputs; 0.5 in the paper"""
    dtype: jnp.dtype = _FLOAT32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[..., features]`` for x ``[..., F]``."""
        inputs = x.shape[-1]
        bound = inputs**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        noise = nn.initializers.constant(self.sigma * bound)
        kernel = self.param("kernel", uniform, (inputs, self.features))
        bias = self.param("bias", uniform, (self.features,))
        kernel_sigma = self.param("kernel_sigma", noise, (inputs, self.features))
        bias_sigma = self.param("bias_sigma", noise, (self.features,))
        x = x.astype(self.dtype)
        along = (1,) * (x.ndim - 1)
        y = product(x, kernel.astype(self.dtype)) + bias.astype(self.dtype).reshape(*along, -1)
        if self.is_initializing() or not self.has_rng(NOISE):
            return y
        draws = jax.random.normal(self.make_rng(NOISE), (inputs + self.features,))
        draws = (jnp.sign(draws) * jnp.sqrt(jnp.abs(draws))).astype(self.dtype)
        come, go = draws[:inputs].reshape(*along, -1), draws[inputs:].reshape(*along, -1)
        shaken = product(x * come, kernel_sigma.astype(self.dtype))
        return y + (shaken + bias_sigma.astype(self.dtype).reshape(*along, -1)) * go
