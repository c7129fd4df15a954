"""The flags of ``jaxdqn run`` that choose the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxdqn.errors import reject

if TYPE_CHECKING:
    from jaxdqn.actor_learner.engine import RayEngine

_OF_RAY = ("actors", "replay_shards", "ray_address")


def check_engine(flags: Any) -> None:
    """Check that the flags of an engine come with it.

    Raises:
        ValueError: naming the flag.
    """
    if flags.engine == "ray":
        for name in ("coordinator", "multi_host", "explain", "debug"):
            if getattr(flags, name):
                reject(name, getattr(flags, name), "left out with engine='ray'")
        return
    for name in _OF_RAY:
        if getattr(flags, name) is not None:
            reject(name, getattr(flags, name), "left out without engine='ray'")


def make_engine(flags: Any) -> RayEngine | None:
    """Return the engine that the flags choose; None for the compiled trainer."""
    if flags.engine != "ray":
        return None
    from jaxdqn.actor_learner.engine import RayEngine

    actors = 1 if flags.actors is None else flags.actors
    shards = 1 if flags.replay_shards is None else flags.replay_shards
    return RayEngine(actors, shards, flags.ray_address)
