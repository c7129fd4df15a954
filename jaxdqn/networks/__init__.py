"""Q-networks: torsos, heads, and their selection by the configuration."""

from jaxdqn.networks.build import from_module, make_network
from jaxdqn.networks.hadamax import HadamaxTorso
from jaxdqn.networks.heads import (
    CategoricalHead,
    Head,
    ImplicitQuantileHead,
    LinearHead,
    QuantileHead,
)
from jaxdqn.networks.impala import ImpalaTorso, adaptive_max_pool
from jaxdqn.networks.layers import Layers, NoisyDense
from jaxdqn.networks.recurrent import from_custom_module
from jaxdqn.networks.torsos import Conv, MinAtarTorso, MLPTorso, NatureTorso

__all__ = [
    "CategoricalHead",
    "Conv",
    "HadamaxTorso",
    "Head",
    "ImpalaTorso",
    "ImplicitQuantileHead",
    "Layers",
    "LinearHead",
    "MLPTorso",
    "MinAtarTorso",
    "NatureTorso",
    "NoisyDense",
    "QuantileHead",
    "adaptive_max_pool",
    "from_custom_module",
    "from_module",
    "make_network",
]
