"""Environments on the host, whose inputs and outputs are NumPy arrays."""

from jaxdqn.envs.vector.base import HostEnvironment, VectorEnvironment
from jaxdqn.envs.vector.registry import host_environment

__all__ = ["HostEnvironment", "VectorEnvironment", "host_environment"]
