"""Build the Q-network of a run from its configuration and the observation shape."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.errors import reject
from jaxdqn.networks.layers import NOISE
from jaxdqn.networks.recurrent import (
    RecurrentQNetwork,
    from_custom_module,
    from_recurrent_module,
    make_cell,
)
from jaxdqn.networks.spectral import with_power_iteration
from jaxdqn.networks.torso_and_head import make_torso_and_head
from jaxdqn.types import Array, Atoms, EnvSpec, Network, Params, PyTree, QOutput, Quantiles

_MIN_SIDE = {"minatar": 3, "nature": 36, "impala": 8, "hadamax": 8}
"""Minimum height and width of the observations of each image torso."""


class QNetwork(nn.Module):
    """Torso followed by a head."""

    torso: nn.Module
    head: nn.Module

    def __call__(self, obs: Array) -> QOutput:
        """Return the head's output for observations ``[B, O]``."""
        return self.head(self.torso(obs))


def make_network(config: Config, spec: EnvSpec, network: Any = None) -> Network:
    """Make the Q-network of a run.

    Args:
      config: configuration of the run.
      spec: specification of the environment.
      network: a custom ``Network`` or flax module ``obs[B, O] -> q[B, A]``; by default the
        torso of ``config.network`` and the head that ``config.loss`` needs. With
        ``config.recurrent="custom"``, a ``Network`` with a carry, or a recurrent flax module as for
        ``jaxdqn.networks.from_custom_module``.

    Raises:
      ValueError: if the configured network does not accept the observations, or if a custom
        network does not fit the configuration or the environment.
    """
    stack = (config.frame_stack,) if config.frame_stack > 1 else ()
    shape = (*spec.obs_shape, *stack)
    draws = LOSSES[config.loss].head == "implicit_quantile"
    if network is None and config.recurrent == "custom":
        raise ValueError("network=None: must be given with recurrent='custom'")
    if network is not None:
        if not isinstance(network, Network):
            if not isinstance(network, nn.Module):
                raise ValueError(f"network={network!r}: must be a flax module or a Network")
            if config.recurrent == "custom":
                network = _custom_recurrent(network)
            else:
                _check_module(network, spec, shape)
                network = from_module(network, noisy=config.noisy, draws=draws)
        _check_custom(network, config, spec, shape)
        return network
    if config.scale_observations == "always" and spec.obs_dtype == np.bool_:
        reject("scale_observations", "always", "auto or never for boolean observations")
    shape = (*_with_channels_last(config, spec.obs_shape), *stack)
    kind: str = config.network
    if kind == "auto":
        kind = _choose(shape, spec.obs_dtype)
    if kind in _MIN_SIDE and not _is_image(shape, _MIN_SIDE[kind]):
        side = _MIN_SIDE[kind]
        raise ValueError(
            f"network={kind!r}: must be 'mlp' for observations of shape {shape}; {kind} takes "
            f"[H, W, C] (or stacked [H, W]) of at least {side}x{side}"
        )
    if config.channels == "first" and kind == "mlp":
        reject("channels", "first", f"left out for observations of shape {spec.obs_shape}, which "
               "are not convolved")  # fmt: skip
    torso, head = make_torso_and_head(config, kind, spec.num_actions)
    if config.recurrent != "none":
        cell = make_cell(config.recurrent, config.recurrent_size)
        network = from_recurrent_module(RecurrentQNetwork(torso, cell, head))
        return with_power_iteration(network) if config.spectral_norm else network
    module = QNetwork(torso, head)
    network = from_module(module, noisy=config.noisy, draws=draws)
    return with_power_iteration(network) if config.spectral_norm else network


def _with_channels_last(config: Config, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an observation with channels last, by the rule of ``config.channels``.

    Raises:
      ValueError: if ``channels`` is first and there are not three axes, or if the axes look like
        [C, H, W] and ``channels`` does not specify their order.
    """
    if config.network == "mlp":
        return shape
    if config.channels == "first":
        if len(shape) != 3:
            reject("channels", "first", f"left out for observations of shape {shape}; it is for "
                   "pictures [C, H, W]")  # fmt: skip
        return (*shape[1:], shape[0])
    if config.channels == "auto" and _looks_channel_first(shape):
        reject("channels", "auto", f"'first' for pictures [C, H, W], or 'last' for [H, W, C]: "
               f"observations have shape {shape}")  # fmt: skip
    return shape


def _looks_channel_first(shape: tuple[int, ...]) -> bool:
    """Return whether three axes look like channels, height and width, in this order.

    They do if the last two have at least 3 elements, and the first is smaller than both, or
    differs from both while they are equal.
    """
    if len(shape) != 3 or min(shape[1:]) < _MIN_SIDE["minatar"]:
        return False
    first, height, width = shape
    return first < min(height, width) or (height == width != first)


def _custom_recurrent(module: nn.Module) -> Network:
    if not callable(getattr(module, "initial_carry", None)):
        raise ValueError(
            f"network={type(module).__name__}: must have initial_carry(batch_size) with "
            "recurrent='custom'"
        )
    return from_custom_module(module)


def from_module(module: nn.Module, *, noisy: bool = False, draws: bool = False) -> Network:
    """Make a feed-forward network from a flax module ``obs[B, O] -> q[B, A]`` (or ``QOutput``).

    The module receives the observations exactly as the environment produces them (uint8
    frames, booleans), and scales or casts them itself. Its parameters are the variables that
    ``module.init`` returns, so ``module.apply(params, obs)`` gives the same values elsewhere.

    Args:
      module: flax module; it may draw random numbers from the stream ``noise``.
      noisy: True if these numbers perturb its parameters. Each environment then acts with separate
        noise.
      draws: True if the module draws random numbers for another purpose.
    """

    def init(key: Array, obs: Array) -> Params:
        return module.init(key, obs)

    def apply(
        params: Params, key: Array | None, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        del first
        noise = {NOISE: key} if key is not None and (noisy or draws) else None
        output: Any = module.apply(params, obs, rngs=noise)
        if not isinstance(output, QOutput):
            output = QOutput(q_values=output)
        return output._replace(q_values=output.q_values.astype(jnp.float32)), carry

    return Network(init=init, apply=apply, initial_carry=lambda batch_size: (), noisy=noisy)


def _is_image(shape: tuple[int, ...], side: int) -> bool:
    return len(shape) >= 3 and min(shape[:2]) >= side


def _choose(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Return nature for uint8 84x84 frames, minatar for images of at least 3x3, otherwise mlp."""
    if _is_image(shape, _MIN_SIDE["nature"]) and shape[:2] == (84, 84) and dtype == np.uint8:
        return "nature"
    return "minatar" if _is_image(shape, _MIN_SIDE["minatar"]) else "mlp"


def _check_module(module: nn.Module, spec: EnvSpec, shape: tuple[int, ...]) -> None:
    obs = jax.ShapeDtypeStruct((2, *shape), spec.obs_dtype)
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), obs)
    q = output.q_values if isinstance(output, QOutput) else output
    name = type(module).__name__
    if getattr(q, "shape", None) != (2, spec.num_actions):
        raise ValueError(
            f"network={name}: must give q of shape (batch, "
            f"{spec.num_actions}) for observations of shape (batch, "
            f"{', '.join(map(str, shape))}), got {getattr(q, 'shape', q)} for a batch of 2"
        )
    extra = sorted(set(variables) - {"params"})
    if extra:
        raise ValueError(
            f"network={name}: must have parameters only, got also "
            f"{', '.join(extra)}, which are not trained by gradients"
        )


def _layout(carry: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), carry)


_BUILT_IN_ONLY = (
    "network", "hidden_sizes", "dense_size", "torso_width", "pool_size", "spectral_norm",
    "dueling", "layer_norm", "noisy_sigma", "recurrent", "atoms",
    "value_min", "value_max", "quantiles", "precision", "convolution", "scale_observations",
    "channels",
)  # fmt: skip
"""Fields that determine the built-in network; they have no effect on a custom network."""


def _check_custom(network: Network, config: Config, spec: EnvSpec, shape: tuple[int, ...]) -> None:
    """Reject a custom network that the run cannot train.

    Raises:
      ValueError: if an option of the built-in network is set, if the network has a carry without
        ``recurrent="custom"`` or lacks one with it, if ``apply`` changes the form of the carry, or
        if its output lacks values or a distribution that the loss reads.
    """
    for name in _BUILT_IN_ONLY:
        default = getattr(Config, name)
        # hidden_sizes is ignored and not rejected, because presets set it.
        custom = name == "recurrent" and config.recurrent == "custom"
        if name != "hidden_sizes" and not custom and getattr(config, name) != default:
            raise ValueError(
                f"{name}={getattr(config, name)!r}: must be {default!r} with a custom "
                "network, which it does not change"
            )
    carry = jax.eval_shape(lambda: network.initial_carry(2))
    if bool(jax.tree.leaves(carry)) != (config.recurrent == "custom"):
        raise ValueError(
            "network: must have an empty carry, or a carry with recurrent='custom', which trains "
            "it on sequences"
        )
    obs = jax.ShapeDtypeStruct((2, *shape), spec.obs_dtype)
    first = jax.ShapeDtypeStruct((2,), jnp.bool_)

    def apply(key: Array, obs: Array, first: Array) -> tuple[QOutput, PyTree]:
        params = network.init(key, obs)
        return network.apply(params, key, network.initial_carry(2), obs, first)

    output, next_carry = jax.eval_shape(apply, jax.random.key(0), obs, first)
    if _layout(next_carry) != _layout(carry):
        raise ValueError(
            f"network: must return a carry as initial_carry does, {_layout(carry)}, not "
            f"{_layout(next_carry)}"
        )
    if output.q_values.shape != (2, spec.num_actions):
        raise ValueError(
            f"network: must give q_values of shape (2, {spec.num_actions}) for 2 observations, got "
            f"{output.q_values.shape}"
        )
    head = LOSSES[config.loss].head
    wanted = {"linear": None, "categorical": Atoms}.get(head, Quantiles)
    if wanted is not None and not isinstance(output.distribution, wanted):
        raise ValueError(
            f"network: must give a QOutput whose distribution is {wanted.__name__} with "
            f"loss={config.loss!r}; see jaxdqn.types"
        )
