"""Environments on the host: batched NumPy arrays in and out, in a simulator's own processes."""

from jaxdqn.envs.vector.base import HostEnvironment, VectorEnvironment
from jaxdqn.envs.vector.registry import from_gymnasium, host_environment

__all__ = ["HostEnvironment", "VectorEnvironment", "from_gymnasium", "host_environment"]
