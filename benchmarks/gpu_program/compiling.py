"""Compile JAX functions for a GPU on a machine without one."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.gpu_program.target import target_config
from benchmarks.gpu_program.thunks import Thunk, parse_thunks

_PACKAGES = ("jax_plugins.xla_cuda12", "jax_cuda12_plugin", "nvidia.cuda_nvcc")


class Compiled(NamedTuple):
    """Program compiled for a GPU."""

    thunks: Thunk
    temporary_bytes: int
    argument_bytes: int
    trace_seconds: float
    compile_seconds: float
    compile_cpu_seconds: float
    """CPU time of all threads, which other load on the machine hardly affects."""


def missing_packages() -> str:
    """Return the reason why compilation for a GPU is impossible here; empty if it is possible."""
    if any(_lacks(package) for package in _PACKAGES):
        return "the extra gpu-compile is not installed: pip install 'jaxdqn[gpu-compile]'"
    wanted = importlib.metadata.version("jaxlib")
    for package in ("jax-cuda12-plugin", "jax-cuda12-pjrt"):
        version = importlib.metadata.version(package)
        if version != wanted:
            return f"{package}=={version} is installed: must be {wanted}, the version of jaxlib"
    return ""


def gpu_devices(count: int = 1) -> Sequence[jax.Device]:
    """Return GPUs of one host, for compilation only.

    Raises:
        RuntimeError: if the packages of the extra ``gpu-compile`` are not installed.
    """
    if reason := missing_packages():
        raise RuntimeError(reason)
    from jax.experimental import topologies

    # The plug-in would check libraries that are needed only for execution.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(), topology=f"1x1x{count}"
    )
    return topology.devices


def compile_for_gpu(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    dump: Path | None = None,
) -> Compiled:
    """Compile a function that donates its first argument.

    Args:
        function: function to jit.
        arguments: pytrees of ``ShapeDtypeStruct`` with shardings on ``gpu_devices``.
        options: additional options of XLA.
        dump: empty or new folder for the dumps of XLA; by default they are deleted.
    """
    started = time.perf_counter()
    traced = jax.jit(function, donate_argnums=0).trace(*arguments)
    lowered = traced.lower(lowering_platforms=("cuda",))
    traced_at, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(dump or temporary)
        compiled = lowered.compile({**options, **_options(folder)})
        compiled_at, cpu = time.perf_counter(), time.process_time() - cpu
        thunks = parse_thunks(
            _dumped(folder, "thunk_sequence_after_thunk_passes.txt"),
            _dumped(folder, "thunk_metadata.txt"),
            compiled.as_text(),
        )
    memory = compiled.memory_analysis()
    return Compiled(
        thunks=thunks,
        temporary_bytes=memory.temp_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        trace_seconds=traced_at - started,
        compile_seconds=compiled_at - traced_at,
        compile_cpu_seconds=cpu,
    )


def _lacks(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:
        return True


def _options(folder: str) -> dict[str, Any]:
    return {
        "xla_dump_to": folder,
        "xla_dump_hlo_as_text": True,
        "xla_gpu_autotune_level": 0,  # autotuning measures on the device
        "xla_gpu_cuda_data_dir": str(importlib.resources.files("nvidia.cuda_nvcc")),
    }


def _dumped(folder: str, ending: str) -> str:
    """Return the text of the largest file with this ending."""
    files = sorted(Path(folder).glob(f"*.{ending}"), key=lambda file: file.stat().st_size)
    if not files:
        raise RuntimeError(f"XLA has written no {ending}; the tool knows JAX 0.10 and 0.11")
    return files[-1].read_text()
