"""Q-networks: torsos, heads, and how a configuration chooses them."""

from jaxdqn.networks.build import from_module, make_network
from jaxdqn.networks.heads import (
    ActionOutputs,
    CategoricalHead,
    ImplicitQuantileHead,
    LinearHead,
    QuantileHead,
)
from jaxdqn.networks.layers import Layers, NoisyDense
from jaxdqn.networks.torsos import Conv, MinAtarTorso, MLPTorso, NatureTorso

__all__ = [
    "ActionOutputs",
    "CategoricalHead",
    "Conv",
    "ImplicitQuantileHead",
    "Layers",
    "LinearHead",
    "MLPTorso",
    "MinAtarTorso",
    "NatureTorso",
    "NoisyDense",
    "QuantileHead",
    "from_module",
    "make_network",
]
