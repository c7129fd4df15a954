"""Choices that depend on the backend a program is traced for, all in one place."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax

_ASSUMED: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)


class Choices(NamedTuple):
    """Choices that differ between backends.

    The choices for accelerators are based on the number of kernels that the compiled programs
    launch (``python -m benchmarks.gpu_program``). Run times have not been measured.
    """

    pack_carries: bool
    """Pack the small leaves of the carry of a loop into one vector: ``jaxdqn.loops``."""
    unroll: int
    """Unroll factor of the loops over vector steps, gradient steps and steps of a recurrent cell.
    Compilation takes longer by about this factor (docs/performance.md)."""
    select_at_indices: bool
    """Write to one index of an environment's array by a selection: ``jaxdqn.envs.one_hot``."""
    associative_targets: bool
    """Compute the targets of Q(lambda) by an associative scan: log2(K) passes instead of K."""
    population: Literal["vmap", "map"]
    """Default execution of a population: ``jaxdqn.parallel.population``."""
    convolution: Literal["lax", "patches"]
    """Form of ``convolution='auto'``: ``jaxdqn.networks.torsos.Conv``. Chosen by the platform for
    which a program is compiled, not where it is traced, because policies are exported for several
    platforms."""
    compiler_options: Mapping[str, Any]
    """Compiler options of XLA."""


# XLA's default plus convolutions; without them each convolution ends a CUDA graph.
_COMMAND_BUFFERS = (
    "CONDITIONAL", "CONVOLUTION", "CUBLAS", "CUBLASLT", "CUDNN", "CUSTOM_CALL",
    "DYNAMIC_SLICE_FUSION", "FUSION",
)  # fmt: skip

_CPU = Choices(
    pack_carries=False,
    unroll=1,
    select_at_indices=False,
    associative_targets=False,
    population="map",
    convolution="patches",
    compiler_options={},
)
_ACCELERATOR = Choices(
    pack_carries=True,
    unroll=8,
    select_at_indices=True,
    associative_targets=True,
    population="vmap",
    convolution="lax",
    compiler_options={},
)
_GPU = _ACCELERATOR._replace(
    compiler_options={"xla_gpu_enable_command_buffer": ",".join(_COMMAND_BUFFERS)}
)
_CHOICES = {"cpu": _CPU, "gpu": _GPU}


def choices(platform: str | None = None) -> Choices:
    """Return the choices for a platform; by default, that for which programs are traced."""
    return _CHOICES.get(platform or backend(), _ACCELERATOR)


def backend() -> str:
    """Return the backend that programs are traced for: ``cpu``, ``gpu`` or ``tpu``."""
    return _ASSUMED.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Trace programs for another backend than JAX's default, in order to compile them for it.

    Build the trainer within the context too: some choices are made when it is built.
    """
    token = _ASSUMED.set(name)
    try:
        yield
    finally:
        _ASSUMED.reset(token)
