"""Names of environments on the host: ``SUITE:ID``, such as ``ale:pong``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import reject


def host_environment(
    name: str, arguments: Mapping[str, Any], *, processes: bool = False
) -> HostEnvironment:
    """Return an environment on the host.

    Args:
      name: ``SUITE:ID``.
      arguments: keyword arguments of the constructor.
      processes: True to step each environment in a separate process.

    Raises:
      ValueError: if the id or an argument is unknown, or the spaces are not supported.
    """
    suite, _, identity = name.partition(":")
    if suite == "gymnasium":
        from jaxdqn.envs.vector.gymnasium import gymnasium_environment

        return gymnasium_environment(identity, arguments, processes=processes)
    if processes:
        reject("env_processes", True, f"left out with env={name!r}, which steps in threads")
    if suite == "envpool":
        from jaxdqn.envs.vector.envpool import envpool_environment

        return envpool_environment(identity, arguments)
    from jaxdqn.envs.vector.atari import atari_environment

    return atari_environment(identity, arguments)
