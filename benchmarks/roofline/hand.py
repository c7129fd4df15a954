"""Operations and bytes of acting, drawing and learning, counted by hand. Imports no JAX.

Operations are those of matrix products and convolutions: a multiplication and an addition for each
weight. Bytes are those that must be transferred from or to memory at least once: parameters,
moments, observations and rows. Values between the layers are not counted, because they can stay in
the caches of the device or in a fused kernel. Operations and bytes are therefore lower bounds, and
so is the floor time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxdqn.config.config import Config

FLOAT = 4
"""Bytes of a float32, and of an int32."""
_MINATAR_CHANNELS, _MINATAR_KERNEL, _MINATAR_DENSE = 16, 3, 128


class Layer(NamedTuple):
    """Dense layer, or a convolution regarded as a dense layer at each of its positions."""

    inputs: int
    outputs: int
    positions: int = 1
    norm: bool = False
    """True if the outputs are layer-normalised, with a scale and a shift for each output."""

    @property
    def weights(self) -> int:
        """Number of elements of the kernel."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Number of elements of the kernel, the bias and the normalisation."""
        return self.weights + self.outputs * (3 if self.norm else 1)


class Work(NamedTuple):
    """Work of a part of an iteration."""

    flops: float
    bytes: float

    def times(self, count: float) -> Work:
        """Return the work of ``count`` repetitions."""
        return Work(count * self.flops, count * self.bytes)

    def plus(self, other: Work) -> Work:
        """Return the sum of both."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def layers_of(config: Config, obs_shape: Sequence[int], num_actions: int) -> list[Layer]:
    """Return the layers of the network of a configuration.

    Args:
        config: configuration with an MLP, or with the MinAtar network on observations [H, W, C].
        obs_shape: shape of one observation, without the frame stack.
        num_actions: number of outputs of the head.

    Raises:
        ValueError: if the network has parts that are not counted here.
    """
    for name, counted in {"dueling": False, "noisy": False, "recurrent": "none"}.items():
        if getattr(config, name) != counted:
            raise ValueError(f"{name}={getattr(config, name)!r}: must be {counted!r} to be counted")
    if config.loss not in ("huber", "squared"):
        raise ValueError(f"loss={config.loss!r}: must be huber or squared to be counted")
    norm, size = config.layer_norm, math.prod(obs_shape) * config.frame_stack
    layers, widths = [], list(config.hidden_sizes)
    if len(obs_shape) == 3 and config.network in ("auto", "minatar"):
        height, width = (side - _MINATAR_KERNEL + 1 for side in obs_shape[:2])
        inputs = _MINATAR_KERNEL**2 * obs_shape[2] * config.frame_stack
        # Layer normalisation, if enabled, is applied to the dense layers, and over the channels
        # after the convolution.
        layers.append(Layer(inputs, _MINATAR_CHANNELS, height * width, norm))
        size, widths = height * width * _MINATAR_CHANNELS, [_MINATAR_DENSE]
    for outputs in widths:
        layers.append(Layer(size, outputs, norm=norm))
        size = outputs
    return [*layers, Layer(size, num_actions)]


def forward_flops(layers: Sequence[Layer], batch: int) -> float:
    """Return the operations of the forward pass of a batch."""
    return sum(2.0 * batch * layer.positions * layer.weights for layer in layers)


def backward_flops(layers: Sequence[Layer], batch: int) -> float:
    """Return the operations of the backward pass of a batch.

    A layer has two products, for the gradients of its kernel and of its inputs. The first layer
    needs only the first product.
    """
    return 2 * forward_flops(layers, batch) - forward_flops(layers[:1], batch)


def parameter_bytes(layers: Sequence[Layer]) -> int:
    """Return the bytes of the parameters of a network."""
    return FLOAT * sum(layer.parameters for layer in layers)


def act_work(config: Config, layers: Sequence[Layer], obs_bytes: int) -> Work:
    """Return the work of choosing the actions of a vector step of E environments.

    The parameters and the observations are read, and the actions are written.

    Args:
        config: configuration of the run.
        layers: layers of the network.
        obs_bytes: bytes of one observation as the network receives it.
    """
    envs = config.envs_per_device
    return Work(
        forward_flops(layers, envs), parameter_bytes(layers) + envs * (obs_bytes + FLOAT)
    )  # fmt: skip


def draw_work(config: Config, stored_bytes: int, obs_bytes: int) -> Work:
    """Return the work of drawing a batch from the replay, or the minibatches of PQN.

    For each row, two observations, the action, and the reward and a byte of flags of N steps are
    read; two observations, the action, the return and the discount are written. For PQN, the
    reward, the flags and the maximum Q of each row of an iteration are read; targets, weights and
    the permutations of the passes are written.

    Args:
        config: configuration of the run.
        stored_bytes: bytes of one observation in the replay.
        obs_bytes: bytes of one observation as the network receives it.
    """
    if config.algorithm == "pqn":
        rows = config.envs_per_device * config.rollout_length
        return Work(0, rows * (2 * FLOAT + 1 + (2 + config.epochs) * FLOAT))
    read = 2 * stored_bytes * config.frame_stack + FLOAT + config.n_step * (FLOAT + 1)
    written = 2 * obs_bytes + 3 * FLOAT
    return Work(0, config.batch_per_device * config.accumulate * (read + written))


def learn_work(config: Config, layers: Sequence[Layer], obs_bytes: int) -> Work:
    """Return the work of a gradient step on a batch.

    DQN evaluates the online network, the target network, and with ``double`` also the online
    network at the next observations. The parameters and both moments are read and written, and the
    parameters of the target network are read. PQN has already computed its targets.

    Args:
        config: configuration of the run, with Adam or RAdam.
        layers: layers of the network.
        obs_bytes: bytes of one observation as the network receives it.
    """
    batch, params = config.batch_per_device * config.accumulate, parameter_bytes(layers)
    forward = forward_flops(layers, batch)
    is_pqn = config.algorithm == "pqn"
    passes = 1 if is_pqn else 2 + config.double
    observations = 1 if is_pqn else 2
    return Work(
        passes * forward + backward_flops(layers, batch),
        (6 if is_pqn else 7) * params + batch * (observations * obs_bytes + 3 * FLOAT),
    )


def iteration_counts(config: Config) -> dict[str, int]:
    """Return the number of repetitions of each part in an iteration."""
    steps = config.gradient_steps_per_iteration
    draws = 1 if config.algorithm == "pqn" else steps
    return {"act": config.rollout_length, "draw": draws, "learn": steps}


def floor_seconds(work: Work, flops_per_second: float, bytes_per_second: float) -> float:
    """Return the minimum time in seconds of some work on a device with these rates."""
    return max(work.flops / flops_per_second, work.bytes / bytes_per_second)
