"""Which network a configuration and an observation ask for."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
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
      ValueError: if a torso cannot take the observations, naming it and their
        shape, or if your module does not give a value for each action.
    """
    shape = (*spec.obs_shape, *((config.frame_stack,) if config.frame_stack > 1 else ()))
    if isinstance(network, Network):
        return network
    if network is not None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network={network!r}: must be a flax module or a Network")
        _check_module(network, spec, shape)
        return from_module(network)
    kind: str = config.network
    if kind == "auto":
        kind = _choose(shape, spec.obs_dtype)
    if kind in _SMALLEST and not _is_image(shape, _SMALLEST[kind]):
        side = _SMALLEST[kind]
        raise ValueError(
            f"network={kind!r}: must be 'mlp' for observations of shape {shape}; {kind} takes "
            f"[H, W, C] (or stacked [H, W]) of at least {side}x{side}"
        )
    dtype = jnp.dtype(config.precision)
    torso: nn.Module
    if kind == "mlp":
        torso = MLPTorso(config.hidden_sizes, dtype)
    else:
        torso = (MinAtarTorso if kind == "minatar" else NatureTorso)(config.convolution, dtype)
    return from_module(QNetwork(torso, LinearHead(spec.num_actions)))


def from_module(module: nn.Module) -> Network:
    """Make a feed-forward network of a flax module ``obs[B, O] -> q[B, A]``.

    The module is given the observations as the environment makes them (uint8
    frames, booleans) and scales or casts them itself. Its parameters are the
    variables that ``module.init`` returns, so ``module.apply(params, obs)``
    gives the same values outside.
    """

    def init(key: Array, obs: Array) -> Params:
        return module.init(key, obs)

    def apply(
        params: Params, key: Array, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        del key, first
        q_values: Any = module.apply(params, obs)
        return QOutput(q_values=q_values.astype(jnp.float32)), carry

    return Network(init=init, apply=apply, initial_carry=lambda batch_size: ())


def _is_image(shape: tuple[int, ...], side: int) -> bool:
    return len(shape) >= 3 and min(shape[:2]) >= side


def _choose(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Return nature for Atari frames, minatar for other images, mlp for anything else."""
    if _is_image(shape, _SMALLEST["nature"]) and shape[:2] == (84, 84) and dtype == np.uint8:
        return "nature"
    return "minatar" if _is_image(shape, _SMALLEST["minatar"]) else "mlp"


def _check_module(module: nn.Module, spec: EnvSpec, shape: tuple[int, ...]) -> None:
    obs = jax.ShapeDtypeStruct((2, *shape), spec.obs_dtype)
    q, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), obs)
    if getattr(q, "shape", None) != (2, spec.num_actions):
        raise ValueError(
            f"network={type(module).__name__}: must give q of shape (batch, "
            f"{spec.num_actions}) for observations of shape (batch, "
            f"{', '.join(map(str, shape))}), got {getattr(q, 'shape', q)} for a batch of 2"
        )
    extra = sorted(set(variables) - {"params"})
    if extra:
        raise ValueError(
            f"network={type(module).__name__}: must have parameters only, got also "
            f"{', '.join(extra)}, which are not trained by gradients"
        )
