"""Hadamax encoder: Hadamard products of two branches, with max-pooling (Kooi et al. 2025)."""

from __future__ import annotations

import flax.linen as nn

from jaxdqn.networks.torsos import Conv, ImageTorso, as_image
from jaxdqn.types import Array

BLOCKS = ((32, 8, 4, 4), (64, 4, 2, 2), (64, 3, 3, 1))
"""For each block: channels and kernel size of the two convolutions, window and stride of the
max-pooling."""


class HadamaxTorso(ImageTorso):
    """Three blocks, each the product of two convolutions, then a dense layer of 512 by default.

    The convolutions have stride 1 and pad to the same size; max-pooling replaces the strides of
    ``NatureTorso``. Activations are GELU. ``Layers.layer_norm``, which the published encoder uses,
    normalises the input of each activation.
    """

    hidden_sizes: tuple[int, ...] = (512,)

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Return features ``[B, hidden_sizes[-1]]``, or flat feature maps without dense layers."""
        x = as_image(obs, self.layers.dtype, self.scale, self.channels_first)
        for channels, kernel, window, stride in BLOCKS:
            x = self._branch(x, channels, kernel) * self._branch(x, channels, kernel)
            x = nn.max_pool(x, (window, window), (stride, stride), "SAME")
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden_sizes:
            x = nn.gelu(self.layers.normalize(self.layers.dense(width, self.layers.dtype)(x)))
        return x

    def _branch(self, x: Array, channels: int, kernel: int) -> Array:
        conv = Conv(
            channels,
            kernel,
            1,
            self.implementation,
            self.layers.dtype,
            "SAME",
            kernel_init=nn.initializers.xavier_normal(),
        )
        return nn.gelu(self.layers.normalize(conv(x)))
