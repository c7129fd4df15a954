"""Checks of the arguments of the engine on Ray."""

from __future__ import annotations

from jaxdqn.actor_learner.gradient_server import Compression
from jaxdqn.actor_learner.ray_cluster import Resources
from jaxdqn.actor_learner.server_learning import ServerMode, ServerOptions
from jaxdqn.communication.compression import KINDS
from jaxdqn.errors import reject


def resources_of(name: str, cpus: float, gpus: float = 0.0) -> Resources:
    """Check and return the resources of a worker.

    Raises:
        ValueError: naming the argument. Ray accepts fractions of a CPU or GPU only below 1.
    """
    for each, value in ((name, cpus), (name.replace("cpus", "gpus"), gpus)):
        least = "above 0" if each == name else "at least 0"
        if value < 0 or (each == name and value == 0) or (value > 1 and value != int(value)):
            reject(each, value, f"{least}, and a whole number above 1")
    if gpus > 1:
        reject(name.replace("cpus", "gpus"), gpus, "at most 1: a learner has one device")
    return Resources(cpus, gpus)


def server_options(
    learners: int,
    mode: ServerMode | None,
    max_staleness: int | None,
    compression: str,
    top_k_fraction: float,
) -> ServerOptions | None:
    """Return the options of the parameter server; None for Ape-X."""
    if learners < 1:
        reject("learners", learners, "at least 1")
    if mode not in (None, "sync", "async"):
        reject("server_mode", mode, "'sync' or 'async'")
    if mode is None:
        if learners > 1:
            reject("learners", learners, "1 without server_mode")
        if compression != "none":
            reject("compression", compression, "'none' with engine='ray' without server_mode")
    if mode != "async" and max_staleness is not None:
        reject("max_staleness", max_staleness, "left out without server_mode='async'")
    if max_staleness is not None and max_staleness < 0:
        reject("max_staleness", max_staleness, "at least 0")
    if compression not in ("none", *KINDS):
        reject("compression", compression, f"one of none, {', '.join(KINDS)}")
    if not 0 < top_k_fraction <= 1:
        reject("top_k_fraction", top_k_fraction, "above 0 and at most 1")
    if mode is None:
        return None
    return ServerOptions(learners, mode, Compression(compression, top_k_fraction), max_staleness)
