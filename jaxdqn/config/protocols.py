"""Protocols of the MinAtar games. Imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxdqn.errors import known_name

PROTOCOLS: dict[str, dict[str, Any]] = {
    "minatar": {"sticky_actions": 0.1, "full_action_set": True},
    "gymnax": {"sticky_actions": 0.0, "full_action_set": False},
}
"""Forms of the MinAtar games. minatar: as published (Young and Tian 2019), except that gymnax ends
episodes after 1 000 steps (Freeway 2 500); presets use it. gymnax: as gymnax makes them, without
sticky actions and with the actions that have an effect; most games are then deterministic."""


def is_minatar(env: Any) -> bool:
    """Return whether a name is that of a MinAtar game."""
    return isinstance(env, str) and env.endswith("-MinAtar")


def protocol_fields(protocol: str | None, env: Any) -> dict[str, Any]:
    """Return the fields of a protocol.

    Args:
        protocol: one of ``PROTOCOLS``; None for that of the presets, which other environments
            than MinAtar games lack.
        env: name of the environment.

    Raises:
        ValueError: if there is no such protocol, or it is given with another environment.
    """
    if protocol is None:
        return PROTOCOLS["minatar" if is_minatar(env) else "gymnax"]
    if protocol not in PROTOCOLS:
        wanted = known_name("protocol", protocol, list(PROTOCOLS))
        raise ValueError(f"protocol={protocol!r}: must be {wanted}")
    if not is_minatar(env):
        raise ValueError(f"protocol={protocol!r}: must be left out with env={env!r}, which is no "
                         "MinAtar game")  # fmt: skip
    return PROTOCOLS[protocol]
