"""Names of environments on the host, ``SUITE:ID``. Imports no JAX."""

from __future__ import annotations

HOST_SUITES = ("ale", "envpool", "gymnasium")


def is_atari(env: object) -> bool:
    """Return whether ``env`` is the name of an Atari game of ALE."""
    return isinstance(env, str) and env.startswith("ale:")


def is_host_env(name: str) -> bool:
    """Return whether ``name`` is the name of an environment on the host."""
    suite, colon, _ = name.partition(":")
    return bool(colon) and suite in HOST_SUITES
