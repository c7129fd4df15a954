"""Residual torso of IMPALA, and adaptive max-pooling."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxdqn.networks.torsos import Conv, ImageTorso, as_image
from jaxdqn.types import Array

CHANNELS = (16, 32, 32)
"""Channels of the three sections at width 1."""


def adaptive_max_pool(x: Array, size: int) -> Array:
    """Reduce x ``[B, H, W, C]`` to ``[B, size, size, C]``.

    Output i of an axis of length n is the maximum over indices from ``floor(i n / size)`` to
    ``ceil((i + 1) n / size) - 1``, as in PyTorch's ``AdaptiveMaxPool2d``. Neighbouring ranges
    overlap if n is not a multiple of ``size``.

    Raises:
      ValueError: if ``size`` exceeds H or W.
    """
    if size > min(x.shape[1:3]):
        raise ValueError(
            f"pool_size={size}: must be at most {min(x.shape[1:3])}, the smaller side of the "
            "convolutions' output"
        )
    for axis in (1, 2):
        length = x.shape[axis]
        ranges = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        parts = [
            jnp.max(x[:, low:high] if axis == 1 else x[:, :, low:high], axis=axis)
            for low, high in ranges
        ]
        x = jnp.stack(parts, axis=axis)
    return x


class ImpalaTorso(ImageTorso):
    """Three sections with residual blocks, then a dense layer (Espeholt et al. 2018, fig. 3).

    A section is a 3x3 convolution, a max-pooling of 3x3 with stride 2, and two residual blocks
    ``x + conv(relu(conv(relu(x))))``. Convolutions and pooling pad to the same size. With
    ``layer_norm`` the input of each ReLU is normalised, which the paper does not do.
    """

    hidden_sizes: tuple[int, ...] = (256,)
    width: int = 1
    """Factor on the numbers of channels 16, 32, 32."""
    pool_size: int | None = None
    """Height and width after adaptive max-pooling of the last section; None omits it."""
    spectral: bool = False
    """Spectral normalisation of the residual blocks' convolutions (Clark et al. 2024)."""

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Return features ``[B, hidden_sizes[-1]]``, or flat feature maps without dense layers."""
        x = as_image(obs, self.layers.dtype, self.scale, self.channels_first)
        for channels in CHANNELS:
            x = self._conv(channels * self.width)(x)
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for _ in range(2):
                y = self._conv(x.shape[-1], self.spectral)(self.layers.activate(x))
                x = x + self._conv(x.shape[-1], self.spectral)(self.layers.activate(y))
        if self.pool_size is not None:
            x = adaptive_max_pool(x, self.pool_size)
        return self.flat_and_dense(self.layers.activate(x))

    def _conv(self, features: int, spectral: bool = False) -> Conv:
        return Conv(
            features, 3, 1, self.implementation, self.layers.dtype, "SAME", spectral=spectral
        )
