"""Q-networks: torsos, heads, and how a configuration chooses them."""

from jaxdqn.networks.build import from_module, make_network
from jaxdqn.networks.heads import LinearHead
from jaxdqn.networks.torsos import Conv, MinAtarTorso, MLPTorso, NatureTorso

__all__ = [
    "Conv",
    "LinearHead",
    "MLPTorso",
    "MinAtarTorso",
    "NatureTorso",
    "from_module",
    "make_network",
]
