"""Names of environments on the host: ``SUITE:ID``, such as ``gymnasium:LunarLander-v3``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdqn.envs.vector.base import HostEnvironment


def host_environment(
    name: str, arguments: Mapping[str, Any], *, processes: bool = False
) -> HostEnvironment:
    """Return an environment on the host.

    Args:
      name: ``SUITE:ID``.
      arguments: keyword arguments of its constructor.
      processes: step each environment in its own process.

    Raises:
      ValueError: if the id or an argument is unknown, or the spaces are not supported.
    """
    from jaxdqn.envs.vector.gymnasium import gymnasium_environment

    return gymnasium_environment(name.partition(":")[2], arguments, processes=processes)
