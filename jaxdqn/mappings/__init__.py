"""Mappings: each takes a trainer and gives a trainer."""

from jaxdqn.mappings.devices import across_devices, device_collectives
from jaxdqn.mappings.model import across_mesh, split_network
from jaxdqn.mappings.population import population

__all__ = [
    "across_devices",
    "across_mesh",
    "device_collectives",
    "population",
    "split_network",
]
