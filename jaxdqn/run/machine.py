"""Machine on which a run trains, for its records."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from jaxdqn.envs.vector.base import cpus
from jaxdqn.storage.jsonl import Record


def machine() -> Record:
    """Return the processor, its cores, the memory and the operating system of this machine.

    Returns:
        ``cpu``: name of the processor; ``cores``: those that this process may use;
        ``memory_bytes``: complete memory; ``os``: operating system with its version.
    """
    return {
        "cpu": cpu_model(),
        "cores": cpus(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "os": platform.platform(),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor; its architecture if the name is unknown."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.machine()
