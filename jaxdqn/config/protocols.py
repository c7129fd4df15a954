"""Protocols of the MinAtar games. Imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxdqn.errors import known_name

PROTOCOLS: dict[str, dict[str, Any]] = {
    "minatar": {"sticky_actions": 0.1, "full_action_set": True},
    "gymnax": {"sticky_actions": 0.0, "full_action_set": False},
}
"""Variants of the MinAtar games. minatar: as published (Young and Tian 2019), except that gymnax
ends episodes after 1 000 steps (Freeway: 2 500); the presets use it. gymnax: the defaults of
gymnax, without sticky actions and with only the actions that have an effect; in most games the
transitions are then deterministic."""


def is_minatar(env: Any) -> bool:
    """Return whether ``env`` is the name of a MinAtar game."""
    return isinstance(env, str) and env.endswith("-MinAtar")


def protocol_fields(protocol: str | None, env: Any) -> dict[str, Any]:
    """Return the fields of a protocol.

    Args:
        protocol: a key of ``PROTOCOLS``, or None for the default: minatar for MinAtar games, and
            gymnax for other environments.
        env: name of the environment.

    Raises:
        ValueError: if the protocol is unknown, or the environment is not a MinAtar game.
    """
    if protocol is None:
        return PROTOCOLS["minatar" if is_minatar(env) else "gymnax"]
    if protocol not in PROTOCOLS:
        wanted = known_name("protocol", protocol, list(PROTOCOLS))
        raise ValueError(f"protocol={protocol!r}: must be {wanted}")
    if not is_minatar(env):
        raise ValueError(f"protocol={protocol!r}: must be left out with env={env!r}, which is not "
                         "a MinAtar game")  # fmt: skip
    return PROTOCOLS[protocol]
