"""Dense layers, plain or noisy, and the settings that all layers of a network share."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdqn.networks.matmul import dot_general, product
from jaxdqn.types import Array

NOISE = "noise"
"""Name of the flax random stream for noise; ``apply`` without this stream adds no noise."""
_FLOAT32 = jnp.dtype("float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """Settings of all dense layers of a network."""

    noisy_sigma: float | None = None
    """Initial noise scale of ``NoisyDense``; None for plain layers."""
    rows_per_example: int = 1
    """Rows of a layer's input for one observation: the number of fractions of implicit
    quantiles."""
    layer_norm: bool = False
    """Normalise the input of each activation (Ba et al. 2016)."""
    dtype: jnp.dtype = _FLOAT32
    """Compute type of hidden layers."""

    def dense(self, width: int, dtype: jnp.dtype = _FLOAT32) -> nn.Module:
        """Make a dense layer without activation; call it in a compact method."""
        if self.noisy_sigma is None:
            return nn.Dense(width, dtype=dtype, dot_general=dot_general)
        return NoisyDense(width, self.noisy_sigma, dtype, self.rows_per_example)

    def hidden(self, x: Array, width: int) -> Array:
        """Apply a hidden layer to ``[..., F]``; call it in a compact method."""
        return self.activate(self.dense(width, self.dtype)(x))

    def activate(self, x: Array) -> Array:
        """Apply layer normalisation (if enabled), then ReLU; call it in a compact method."""
        return nn.relu(self.normalize(x))

    def normalize(self, x: Array) -> Array:
        """Apply layer normalisation, if enabled; call it in a compact method."""
        return nn.LayerNorm(dtype=self.dtype)(x) if self.layer_norm else x


def of_one_example(rows: int, rows_per_example: int) -> bool:
    """Return True if the rows belong to at most one example, as in acting."""
    return rows <= rows_per_example


class NoisyDense(nn.Module):
    """Dense layer with factorised Gaussian noise on its parameters (Fortunato et al. 2018).

    ``y = (mu_w + sigma_w * e) x + mu_b + sigma_b * f(e_out)`` with ``e = f(e_in) f(e_out)^T``
    and ``f(e) = sign(e) sqrt(|e|)`` (eqs. 9 to 11). All rows of x share the noise.

    The rows of several examples, as in learning, are multiplied by the noisy matrix, which is one
    product. In acting, under ``vmap`` over environments with separate noise, there are the rows of
    one example: one row, or with implicit quantiles one row for each fraction. The factorised noise
    is then applied to inputs and outputs. This costs a second product, but avoids a separate noisy
    matrix for each environment.

    The noise is drawn from the stream ``noise``; without it the layer is ``mu_w x + mu_b``.
    """

    features: int
    sigma: float = 0.5
    """sigma_0, 0.5 in the paper; all sigmas are initially sigma_0 / sqrt(inputs)"""
    dtype: jnp.dtype = _FLOAT32
    rows_per_example: int = 1
    """number of rows of x that belong to one example"""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[..., features]`` for x ``[..., F]``."""
        inputs = x.shape[-1]
        bound = inputs**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        constant = nn.initializers.constant(self.sigma * bound, jnp.float32)
        kernel = self.param("kernel", uniform, (inputs, self.features))
        bias = self.param("bias", uniform, (self.features,))
        kernel_sigma = self.param("kernel_sigma", constant, (inputs, self.features))
        bias_sigma = self.param("bias_sigma", constant, (self.features,))
        x = x.astype(self.dtype)
        if self.is_initializing() or not self.has_rng(NOISE):
            return self._affine(x, kernel, bias)
        draws = jax.random.normal(self.make_rng(NOISE), (inputs + self.features,), jnp.float32)
        draws = jnp.sign(draws) * jnp.sqrt(jnp.abs(draws))
        noise_in, noise_out = draws[:inputs], draws[inputs:]
        if not of_one_example(math.prod(x.shape[:-1]), self.rows_per_example):
            kernel = kernel + kernel_sigma * (noise_in[:, None] * noise_out[None, :])
            return self._affine(x, kernel, bias + bias_sigma * noise_out)
        # x (sigma_w * e) = ((x * noise_in) sigma_w) * noise_out, with e the outer product.
        noise_in, noise_out = (
            noise.astype(self.dtype).reshape(*(1,) * (x.ndim - 1), -1)
            for noise in (noise_in, noise_out)
        )
        perturbed = self._affine(x * noise_in, kernel_sigma, bias_sigma)
        return self._affine(x, kernel, bias) + perturbed * noise_out

    def _affine(self, x: Array, kernel: Array, bias: Array) -> Array:
        """Return ``x kernel + bias`` in the compute type."""
        bias = bias.astype(self.dtype).reshape(*(1,) * (x.ndim - 1), -1)
        return product(x, kernel.astype(self.dtype)) + bias
