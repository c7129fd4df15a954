"""Names of environments on the host: ``SUITE:ID``, such as ``gymnasium:LunarLander-v3``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def from_gymnasium(
    make: Callable[[], Any], name: str, *, processes: bool = False
) -> HostEnvironment:
    """Return an environment on the host; see ``jaxdqn.envs.vector.gymnasium.from_gymnasium``."""
    from jaxdqn.envs.vector import gymnasium

    return gymnasium.from_gymnasium(make, name, processes=processes)
