"""Environment variables of the workers of a run on Ray."""

from __future__ import annotations

import math
import os
from pathlib import Path

import jax

import jaxdqn

_GPU_MEMORY = 0.9
"""Fraction of the memory of a GPU that the workers on it allocate."""


def of_cluster(local: bool) -> dict[str, str]:
    """Return the variables of all workers of a cluster.

    Args:
        local: True if the run has started the cluster on this machine. Its workers then import the
            same source tree as this process, and share its cache of compiled programs.
    """
    variables = {"JAX_PLATFORMS": "cpu"}
    if local:
        root = str(Path(jaxdqn.__file__).parents[1])
        path = os.environ.get("PYTHONPATH")
        variables["PYTHONPATH"] = root if not path else f"{root}{os.pathsep}{path}"
        variables |= _compilation_cache()
    return variables


def of_worker(cpus: float, gpus: float) -> dict[str, str]:
    """Return the variables of a worker that differ from those of its cluster.

    A worker with several CPUs has as many threads of XLA. A worker with a GPU allocates its part of
    the memory. The former name of that variable is emptied, because XLA rejects both names at once.
    """
    variables = {}
    if cpus > 1:
        variables["NPROC"] = str(math.ceil(cpus))
    if gpus:
        variables["JAX_PLATFORMS"] = ""
        variables["XLA_CLIENT_MEM_FRACTION"] = f"{_GPU_MEMORY * min(1.0, gpus):.3f}"
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = ""
    return variables


def _compilation_cache() -> dict[str, str]:
    """Return variables with which workers share this process's cache of compiled programs."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    enabled, directory, least = (getattr(jax.config, name) for name in names)
    if not enabled or directory is None:
        return {}
    return dict(zip(map(str.upper, names[1:]), (str(directory), str(least)), strict=True))
