"""Environments on the host: batched NumPy arrays in and out, in a simulator's own processes."""

from jaxdqn.envs.vector.base import HostEnvironment, VectorEnvironment
from jaxdqn.envs.vector.registry import host_environment

__all__ = ["HostEnvironment", "VectorEnvironment", "host_environment"]
