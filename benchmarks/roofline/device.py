"""Measured rates of a device: matrix products and memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import Case, alternate, compile_timed
from jaxdqn.types import Array


class Effort(NamedTuple):
    """Sizes of the measurement."""

    side: int
    """Rows and columns of the square matrices."""
    products: int
    """Products in one call."""
    elements: int
    """Elements of the float32 array that is read and written."""
    passes: int
    """Passes over the array in one call."""
    rounds: int = 5
    seconds: float = 0.2


ACCELERATOR = Effort(side=8_192, products=16, elements=2**28, passes=16)
CPU = Effort(side=1_024, products=4, elements=2**24, passes=4)
TINY = Effort(side=64, products=2, elements=2**12, passes=2, rounds=1, seconds=0.0)

BFLOAT16_MATRICES = "bfloat16 matrices"
PRECISIONS: dict[str, tuple[Any, str | None]] = {
    "default": (jnp.float32, None),
    "float32": (jnp.float32, "float32"),
    "tensorfloat32": (jnp.float32, "tensorfloat32"),
    BFLOAT16_MATRICES: (jnp.bfloat16, None),
}
"""Type of the matrices and precision of their products, for each value of ``matmul_precision`` and
for ``precision='bfloat16'``."""


class DeviceRates(NamedTuple):
    """Rates of a device."""

    flops: dict[str, float]
    """Operations per second of products of large square matrices, by key of ``PRECISIONS``."""
    bytes: float
    """Bytes per second of a pass that reads and writes a large array."""


def effort_for_device() -> Effort:
    """Return the sizes for the default device."""
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


def measure_device(effort: Effort) -> DeviceRates:
    """Measure the rates of the default device; each is the maximum over the rounds."""
    cases = {name: _product_case(effort, *PRECISIONS[name]) for name in PRECISIONS}
    cases["memory"] = _memory_case(effort)
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    flops = {name: product_flops(effort) / min(times[name]) for name in PRECISIONS}
    return DeviceRates(flops, pass_bytes(effort) / min(times["memory"]))


def product_flops(effort: Effort) -> float:
    """Return the operations of one product of square matrices."""
    return 2.0 * effort.side**3


def pass_bytes(effort: Effort) -> float:
    """Return the bytes that one pass reads and writes."""
    return 2.0 * 4 * effort.elements


def _product_case(effort: Effort, dtype: Any, precision: Any) -> Case:
    def run(x: Array, y: Array) -> Array:
        def product(x: Array, _: None) -> tuple[Array, None]:
            return jnp.matmul(x, y, precision=precision), None

        return jax.lax.scan(product, x, None, length=effort.products)[0]

    # Repeated products with this matrix keep values of the same magnitude.
    x = jnp.full((effort.side, effort.side), 1 / effort.side, dtype)
    compiled, _ = compile_timed(run, x, x)
    return Case(lambda: compiled(x, x), effort.products)


def _memory_case(effort: Effort) -> Case:
    def run(x: Array, factor: Array) -> Array:
        def touch(x: Array, _: None) -> tuple[Array, None]:
            return x * factor, None

        return jax.lax.scan(touch, x, None, length=effort.passes)[0]

    x, factor = jnp.ones(effort.elements, jnp.float32), jnp.float32(1)
    compiled, _ = compile_timed(run, x, factor)
    return Case(lambda: compiled(x, factor), effort.passes)
