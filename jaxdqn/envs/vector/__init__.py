"""Environments on the host, with NumPy arrays in and out."""

from jaxdqn.envs.vector.base import HostEnvironment, VectorEnvironment
from jaxdqn.envs.vector.registry import host_environment

__all__ = ["HostEnvironment", "VectorEnvironment", "host_environment"]
