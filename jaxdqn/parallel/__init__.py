"""Mappings over devices and learners: each takes a trainer and returns a trainer."""

from jaxdqn.communication.collectives import device_collectives
from jaxdqn.parallel.data_parallel import across_devices
from jaxdqn.parallel.model_parallel import across_mesh, split_network
from jaxdqn.parallel.population import population

__all__ = [
    "across_devices",
    "across_mesh",
    "device_collectives",
    "population",
    "split_network",
]
