"""Torsos: from observations ``[B, O]`` to features ``[B, F]``."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.backend_choices import choices
from jaxdqn.networks.layers import Layers
from jaxdqn.networks.spectral import POWER_VECTOR, spectral_norm
from jaxdqn.types import Array

Implementation = Literal["auto", "lax", "patches"]
_FLOAT32 = jnp.dtype("float32")


def as_input(obs: Array, dtype: jnp.dtype, scale: bool) -> Array:
    """Cast observations to the compute type; divide by 255 if ``scale``."""
    if scale:
        return obs.astype(dtype) / jnp.asarray(255, dtype)
    return obs.astype(dtype)


def is_picture(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether one observation is a picture with values from 0 to 255.

    A picture is uint8 and has at least three axes: [H, W, C], or stacked [H, W]. Other uint8
    observations, such as one-hot vectors, are not intensities and need no scaling.
    """
    return dtype == np.uint8 and len(shape) >= 3


def _scales(obs: Array, scale: bool | None) -> bool:
    """Return whether to scale a batch of observations; None scales pictures only."""
    return is_picture(obs.shape[1:], obs.dtype) if scale is None else scale


def as_image(
    obs: Array, dtype: jnp.dtype, scale: bool | None = None, channels_first: bool = False
) -> Array:
    """Merge all axes after height and width into channels, ``[B, H, W, C]``, and cast.

    With ``channels_first`` the observations are ``[B, C, H, W]`` (or stacks of these). If ``scale``
    is None, only pictures are divided by 255.
    """
    scales = _scales(obs, scale)
    if channels_first:
        obs = jnp.moveaxis(obs, 1, 3)
    channels = math.prod(obs.shape[3:])
    return as_input(obs.reshape(*obs.shape[:3], channels), dtype, scales)


class Conv(nn.Module):
    """Convolution with the parameters of ``flax.linen.Conv``.

    ``implementation`` selects how the result is computed:

    - ``lax``: ``lax.conv_general_dilated``.
    - ``patches``: concatenate shifted (strided) slices, and multiply by the kernel as a matrix.
    - ``auto``: the choice of ``jaxdqn.backend_choices``: ``patches`` on CPU, ``lax`` on
      accelerators (not yet measured on accelerators).

    Inside ``lax.scan`` XLA:CPU runs a convolution several times slower than outside. Forward
    and backward in a scan, on 2 cores: MinAtar network at batch 128, lax 6.7 ms, patches 1.4;
    Nature network at batch 32, lax 340 ms, patches 25. Alternatives measured on the MinAtar
    network: a sum of 9 products 4.1 ms, ``conv_general_dilated_patches`` 3.3, one product for
    each kernel column 2.0, a banded matrix for each row 1.5. A gather is as fast as patches
    (1.4), and so is space-to-depth before strided layers.
    """

    features: int
    kernel: int
    stride: int = 1
    implementation: Implementation = "auto"
    dtype: jnp.dtype = _FLOAT32
    padding: Literal["VALID", "SAME"] = "VALID"
    """SAME pads with zeros so that an output of stride 1 has the height and width of x."""
    spectral: bool = False
    """Divide the kernel by its spectral norm, with the parameter ``power_vector`` [features]; see
    ``jaxdqn.networks.spectral``."""
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[B, H', W', features]`` for x ``[B, H, W, C]``."""
        x = x.astype(self.dtype)
        size, channels = self.kernel, x.shape[-1]
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if self.spectral:
            vector = self.param(
                POWER_VECTOR, nn.initializers.normal(1.0), (self.features,), jnp.float32
            )
            kernel = kernel / spectral_norm(kernel, vector)
        kernel = kernel.astype(self.dtype)
        if self.padding == "SAME":
            before = (size - 1) // 2
            sides = (before, size - 1 - before)
            x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        bias = bias.astype(self.dtype)
        forms = {
            "lax": partial(_conv_by_lax, stride=self.stride),
            "patches": partial(_conv_by_patches, stride=self.stride),
        }
        if self.implementation == "auto":
            # Select by the platform for which the program is compiled, not where it is traced.
            cpu, gpu, tpu = (forms[choices(name).convolution] for name in ("cpu", "gpu", "tpu"))
            # Each named platform adds operations to the traced program.
            named = {name: form for name, form in (("cpu", cpu), ("tpu", tpu)) if form is not gpu}
            y = jax.lax.platform_dependent(x, kernel, **named, default=gpu)
        else:
            y = forms[self.implementation](x, kernel)
        return y + bias.reshape(1, 1, 1, self.features)


def _conv_by_lax(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve ``[B, H, W, C]`` with ``[k, k, C, F]`` as one operation."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv_by_patches(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve ``[B, H, W, C]`` with ``[k, k, C, F]`` as one matrix product."""
    size, features = kernel.shape[0], kernel.shape[-1]
    batch, height, width, _ = x.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    patches = [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    flat = jnp.concatenate(patches, axis=-1).reshape(batch * rows * columns, -1)
    return (flat @ kernel.reshape(-1, features)).reshape(batch, rows, columns, features)


class MLPTorso(nn.Module):
    """Dense layers with ReLU over the flattened observation."""

    hidden_sizes: tuple[int, ...]
    layers: Layers = Layers()
    scale: bool | None = None
    """Divide observations by 255; None divides pictures only, see ``is_picture``."""

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Return features ``[B, F]``; without layers, the flattened observation."""
        scales = _scales(obs, self.scale)
        x = as_input(obs.reshape(obs.shape[0], -1), self.layers.dtype, scales)
        for width in self.hidden_sizes:
            x = self.layers.hidden(x, width)
        return x


class ImageTorso(nn.Module):
    """Base of the convolutional torsos: their options and dense layers."""

    implementation: Implementation = "auto"
    layers: Layers = Layers()
    hidden_sizes: tuple[int, ...] = ()
    """Widths of the dense layers after the convolutions."""
    scale: bool | None = None
    """As in ``MLPTorso``."""
    channels_first: bool = False
    """Observations are [C, H, W] instead of [H, W, C]."""

    def flat_and_dense(self, x: Array) -> Array:
        """Flatten ``[B, H, W, C]`` and apply the dense layers; call from a compact method."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden_sizes:
            x = self.layers.hidden(x, width)
        return x


class MinAtarTorso(ImageTorso):
    """One 3x3 convolution with 16 channels, then a dense layer of 128 (Young and Tian 2019)."""

    hidden_sizes: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Return features ``[B, hidden_sizes[-1]]``, or flat feature maps without dense layers."""
        x = as_image(obs, self.layers.dtype, self.scale, self.channels_first)
        conv = Conv(16, 3, implementation=self.implementation, dtype=self.layers.dtype)
        x = self.layers.activate(conv(x))
        return self.flat_and_dense(x)


class NatureTorso(ImageTorso):
    """Three convolutions, then a dense layer of 512, for 84x84 frames (Mnih et al. 2015)."""

    hidden_sizes: tuple[int, ...] = (512,)

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Return features ``[B, hidden_sizes[-1]]``, or flat feature maps without dense layers."""
        x = as_image(obs, self.layers.dtype, self.scale, self.channels_first)
        for features, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            conv = Conv(features, kernel, stride, self.implementation, self.layers.dtype)
            x = self.layers.activate(conv(x))
        return self.flat_and_dense(x)
