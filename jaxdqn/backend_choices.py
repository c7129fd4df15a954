"""Choices that depend on the backend for which a program is traced.

``jaxdqn.networks.torsos`` and ``jaxdqn.networks.matmul`` choose the form of a convolution and of a
narrow matrix product when the program is compiled, by ``jax.lax.platform_dependent``.
"""

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
    """Pack the small leaves of a loop carry into one vector: ``jaxdqn.loops``."""
    unroll: int
    """Unroll factor of the loops over vector steps, gradient steps and steps of a recurrent cell.
    Compilation takes longer by about this factor (docs/performance.md)."""
    select_at_indices: bool
    """Replace an environment's write to one array index by a selection: ``jaxdqn.envs.one_hot``."""
    associative_targets: bool
    """Compute the targets of Q(lambda) by an associative scan: log2(K) passes instead of K."""
    population: Literal["vmap", "map"]
    """Default execution of a population: ``jaxdqn.parallel.population``."""
    convolution: Literal["lax", "patches"]
    """Form of ``convolution='auto'``: ``jaxdqn.networks.torsos.Conv``. Chosen by the platform for
    which a program is compiled, not where it is traced, because policies are exported for several
    platforms."""
    compiler_options: Mapping[str, Any]
    """Options for the XLA compiler."""


# The default of XLA plus CONVOLUTION, without which each convolution ends a CUDA graph.
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
    """Return the choices for a platform; by default, for ``backend()``."""
    return _CHOICES.get(platform or backend(), _ACCELERATOR)


def backend() -> str:
    """Return the backend that programs are traced for: ``cpu``, ``gpu`` or ``tpu``."""
    return _ASSUMED.get() or jax.default_backend()


def population_form(
    how: Literal["auto", "vmap", "map"], platform: str | None = None
) -> Literal["vmap", "map"]:
    """Return ``vmap`` or ``map``: how the learners of a population run on a platform."""
    return choices(platform).population if how == "auto" else how


def dispatches_asynchronously() -> bool:
    """Return whether the backend dispatches programs asynchronously."""
    return backend() != "cpu" or bool(jax.config.read("jax_cpu_enable_async_dispatch"))


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Trace programs for the backend ``name`` instead of JAX's default, to cross-compile them.

    Build the trainer within the context too: some choices are made when it is built.
    """
    token = _ASSUMED.set(name)
    try:
        yield
    finally:
        _ASSUMED.reset(token)
