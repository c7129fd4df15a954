"""Which network a configuration and an observation ask for."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdqn.config import Config
from jaxdqn.networks.heads import LinearHead
from jaxdqn.networks.torsos import MinAtarTorso, MLPTorso, NatureTorso
from jaxdqn.types import Array, EnvSpec, Network, Params, PyTree, QOutput

_SMALLEST = {"minatar": 3, "nature": 36}


class QNetwork(nn.Module):
    """A torso and a head."""

    torso: nn.Module
    head: nn.Module

    def __call__(self, obs: Array) -> Array:
        """Return action values ``[B, A]`` for observations ``[B, O]``."""
        return self.head(self.torso(obs))


def make_network(config: Config, spec: EnvSpec, network: Any = None) -> Network:
    """Make the Q-network of a run.

    Args:
      network: your own ``Network``, or flax module ``obs[B, O] -> q[B, A]``;
        by default a torso by ``config.network`` and a linear head.

    Raises:
      ValueError: naming the network and the observation's shape if they do not fit.
    """
    if isinstance(network, Network):
        return network
    if network is not None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network={network!r}: must be a flax module or a Network")
        return from_module(network)
    shape = spec.obs_shape + ((config.frame_stack,) if config.frame_stack > 1 else ())
    kind = config.network
    if kind == "auto":
        kind = _choose(spec)
    dtype = jnp.dtype(config.precision)
    torso: nn.Module
    if kind == "mlp":
        torso = MLPTorso(config.hidden_sizes, dtype)
    else:
        if len(shape) < 3 or min(shape[:2]) < _SMALLEST[kind]:
            side = _SMALLEST[kind]
            raise ValueError(
                f"network={kind!r}: must be mlp for observations of shape {shape}; {kind} takes "
                f"[H, W, C] (or stacked [H, W]) of at least {side}x{side}"
            )
        torso = (MinAtarTorso if kind == "minatar" else NatureTorso)(config.convolution, dtype)
    return from_module(QNetwork(torso, LinearHead(spec.num_actions, dtype)))


def _choose(spec: EnvSpec) -> str:
    if spec.obs_shape[:2] == (84, 84) and spec.obs_dtype == np.uint8:
        return "nature"
    if len(spec.obs_shape) == 3 and min(spec.obs_shape[:2]) >= _SMALLEST["minatar"]:
        return "minatar"
    return "mlp"


def from_module(module: nn.Module) -> Network:
    """Make a feed-forward network of a flax module ``obs[B, O] -> q[B, A]``."""

    def init(key: Array, obs: Array) -> Params:
        return module.init(key, obs)

    def apply(
        params: Params, key: Array, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        del key, first
        return QOutput(q_values=module.apply(params, obs)), carry

    return Network(init=init, apply=apply, initial_carry=lambda batch_size: ())
