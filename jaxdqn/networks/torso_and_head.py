"""Torso and head of the built-in network."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.networks.hadamax import HadamaxTorso
from jaxdqn.networks.heads import CategoricalHead, ImplicitQuantileHead, LinearHead, QuantileHead
from jaxdqn.networks.impala import ImpalaTorso
from jaxdqn.networks.layers import Layers
from jaxdqn.networks.torsos import MinAtarTorso, MLPTorso, NatureTorso

_DENSE = {"minatar": (128,), "nature": (512,), "impala": (256,), "hadamax": (512,)}
"""Default widths of the dense layers after an image torso's convolutions."""


def make_torso_and_head(config: Config, kind: str, num_actions: int) -> tuple[nn.Module, nn.Module]:
    """Make the torso ``kind`` and the head for ``config.loss``.

    The last dense layer moves from the torso into the head in two cases:

    - a dueling head: each of its two streams has a dense layer of that width;
    - implicit quantiles after convolutions: the dense layer follows the embedding, as published.

    With implicit quantiles after an MLP, dueling or not, all dense layers stay in the torso, and
    the head adds one more of the last width.
    """
    implicit = LOSSES[config.loss].head == "implicit_quantile"
    layers = Layers(
        noisy_sigma=config.noisy_sigma if config.noisy else None,
        layer_norm=config.layer_norm,
        dtype=jnp.dtype(config.precision),
    )
    widths, hidden = _DENSE.get(kind, config.hidden_sizes), None
    if config.dense_size is not None:
        widths = (config.dense_size,)
    if widths and (config.dueling or implicit):
        hidden = widths[-1]
        if kind != "mlp" or not implicit:
            widths = widths[:-1]
    scale = {"auto": None, "always": True, "never": False}[config.scale_observations]
    torso: nn.Module
    if kind == "mlp":
        torso = MLPTorso(widths, layers, scale)
    else:
        shared = {"layers": layers, "hidden_sizes": widths, "scale": scale}
        torso = _make_image_torso(config, kind, shared)

    head: dict[str, Any] = {
        "num_actions": num_actions,
        "dueling": config.dueling,
        "hidden": hidden,
        "layers": layers,
    }
    if implicit:  # its layers have a row for each fraction
        head["layers"] = dataclasses.replace(layers, rows_per_example=config.quantiles)
    match LOSSES[config.loss].head:
        case "categorical":
            head |= {"value_min": config.value_min, "value_max": config.value_max}
            return torso, CategoricalHead(outputs=config.atoms, **head)
        case "quantile":
            return torso, QuantileHead(outputs=config.quantiles, **head)
        case "implicit_quantile":
            return torso, ImplicitQuantileHead(samples=config.quantiles, **head)
    return torso, LinearHead(**head)


def _make_image_torso(config: Config, kind: str, shared: dict[str, Any]) -> nn.Module:
    """Return a convolutional torso; ``shared`` has its layers, dense widths and scale."""
    shared = {
        **shared,
        "implementation": config.convolution,
        "channels_first": config.channels == "first",
    }
    if kind == "impala":
        return ImpalaTorso(
            width=config.torso_width,
            pool_size=config.pool_size,
            spectral=config.spectral_norm,
            **shared,
        )
    torsos = {"minatar": MinAtarTorso, "nature": NatureTorso, "hadamax": HadamaxTorso}
    return torsos[kind](**shared)
