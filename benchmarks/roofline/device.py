"""Measured rates of a device: matrix products and memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import Case, alternate, compile_timed
from jaxdqn.types import Array


class MeasurementSizes(NamedTuple):
    """Sizes and repetitions of the measurements of a device."""

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


ACCELERATOR = MeasurementSizes(side=8_192, products=16, elements=2**28, passes=16)
CPU = MeasurementSizes(side=1_024, products=4, elements=2**24, passes=4)
TINY = MeasurementSizes(side=64, products=2, elements=2**12, passes=2, rounds=1, seconds=0.0)

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


def sizes_for_device() -> MeasurementSizes:
    """Return the sizes for the default device."""
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


def measure_device(sizes: MeasurementSizes) -> DeviceRates:
    """Measure the rates of the default device; each rate is that of its fastest round."""
    cases = {name: _product_case(sizes, *PRECISIONS[name]) for name in PRECISIONS}
    cases["memory"] = _memory_case(sizes)
    times = alternate(cases, rounds=sizes.rounds, seconds=sizes.seconds)
    flops = {name: product_flops(sizes) / min(times[name]) for name in PRECISIONS}
    return DeviceRates(flops, pass_bytes(sizes) / min(times["memory"]))


def product_flops(sizes: MeasurementSizes) -> float:
    """Return the operations of one product of square matrices."""
    return 2.0 * sizes.side**3


def pass_bytes(sizes: MeasurementSizes) -> float:
    """Return the bytes that one pass reads and writes."""
    return 2.0 * 4 * sizes.elements


def _product_case(sizes: MeasurementSizes, dtype: Any, precision: Any) -> Case:
    def run(x: Array, y: Array) -> Array:
        def product(x: Array, _: None) -> tuple[Array, None]:
            return jnp.matmul(x, y, precision=precision), None

        return jax.lax.scan(product, x, None, length=sizes.products)[0]

    # The product of this matrix with itself is the same matrix, so values stay finite.
    x = jnp.full((sizes.side, sizes.side), 1 / sizes.side, dtype)
    compiled, _ = compile_timed(run, x, x)
    return Case(lambda: compiled(x, x), sizes.products)


def _memory_case(sizes: MeasurementSizes) -> Case:
    def run(x: Array, factor: Array) -> Array:
        def touch(x: Array, _: None) -> tuple[Array, None]:
            return x * factor, None

        return jax.lax.scan(touch, x, None, length=sizes.passes)[0]

    x, factor = jnp.ones(sizes.elements, jnp.float32), jnp.float32(1)
    compiled, _ = compile_timed(run, x, factor)
    return Case(lambda: compiled(x, factor), sizes.passes)
