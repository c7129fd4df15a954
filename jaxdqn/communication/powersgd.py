"""Low-rank averaging of gradients over devices (PowerSGD), with error feedback."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from jaxdqn.communication.collectives import Collectives
from jaxdqn.communication.compression import ResidualState
from jaxdqn.types import Array, PyTree

_TINY = 1e-20


def powersgd_mean(collectives: Collectives, rank: int) -> optax.GradientTransformation:
    """Average updates over devices as products of low rank (Vogels et al. 2019, algorithms 1, 2).

    Each matrix [n, m], with the residual of earlier steps added, is approximated by ``P Q^T`` with
    P [n, r] and Q [m, r]. The factors come from one power iteration, which starts at the Q of the
    previous gradient step. Two all-reduces average first the P and then the Q of all matrices
    together. Vectors, and matrices that have no more elements than P and Q, are averaged without
    compression in the first all-reduce. A kernel [..., m] of a convolution counts as a matrix of m
    columns.

    Over any number of steps the sum of the applied means is the sum of the true means minus the
    mean of the residuals. All replicas orthogonalise the same averages, so their updates are
    bitwise identical. A non-finite input makes the mean non-finite, as in ``compressed_mean``.

    Args:
      collectives: collectives of the D devices.
      rank: r, at least 1.

    Raises:
      ValueError: if the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1")

    def init(params: PyTree) -> ResidualState:
        shapes = [_matrix_shape(leaf.shape, rank) for leaf in jax.tree.leaves(params)]
        matrices = [shape for shape in shapes if shape is not None]
        residuals = [jnp.zeros(shape, jnp.float32) for shape in matrices]
        # Zeros mean that the start of the iteration has not been chosen yet.
        starts = [jnp.zeros((columns, rank), jnp.float32) for _, columns in matrices]
        return ResidualState((residuals, starts))

    def update(
        updates: PyTree, state: ResidualState, params: PyTree | None = None
    ) -> tuple[PyTree, ResidualState]:
        del params
        leaves, structure = jax.tree.flatten(updates)
        residuals, starts = state.residual
        shapes = [_matrix_shape(leaf.shape, rank) for leaf in leaves]
        low = [i for i, shape in enumerate(shapes) if shape is not None]
        full = [i for i, shape in enumerate(shapes) if shape is None]
        matrices = [
            leaves[i].reshape(shapes[i]).astype(jnp.float32) + residual
            for i, residual in zip(low, residuals, strict=True)
        ]
        columns = [
            matrix @ _start(index, start)
            for index, (matrix, start) in enumerate(zip(matrices, starts, strict=True))
        ]
        sums = _mean_together([*columns, *(leaves[i] for i in full)], collectives)
        bases = [orthogonalize(column) for column in sums[: len(low)]]
        rows = [matrix.T @ basis for matrix, basis in zip(matrices, bases, strict=True)]
        rows = _mean_together(rows, collectives)
        means = [basis @ row.T for basis, row in zip(bases, rows, strict=True)]
        residuals = [matrix - mean for matrix, mean in zip(matrices, means, strict=True)]
        by_index = dict(zip(low, means, strict=True)) | dict(
            zip(full, sums[len(low) :], strict=True)
        )
        averaged = [
            by_index[i].reshape(leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, averaged), ResidualState((residuals, rows))

    return optax.GradientTransformation(init, update)


def orthogonalize(columns: Array) -> Array:
    """Return columns [n, r] that are orthonormal and span the same space (Gram-Schmidt).

    A column that depends linearly on earlier columns becomes zero. Projecting twice keeps the
    columns orthogonal in float32.
    """
    done: list[Array] = []
    for index in range(columns.shape[1]):
        column = columns[:, index]
        before = jnp.sqrt(jnp.sum(jnp.square(column)))
        for _ in range(2):
            for other in done:
                column = column - jnp.dot(other, column) * other
        norm = jnp.sqrt(jnp.sum(jnp.square(column)))
        # The remainder of a dependent column is rounding error, and its direction is meaningless.
        # NaN fails the comparison and remains.
        dependent = norm <= jnp.maximum(1e-6 * before, _TINY)
        done.append(jnp.where(dependent, 0.0, column / jnp.where(dependent, 1.0, norm)))
    return jnp.stack(done, axis=1)


def powersgd_floats(shapes: Sequence[tuple[int, ...]], rank: int) -> int:
    """Return the number of floats that a device contributes to the all-reduces of a gradient step.

    Args:
      shapes: shapes of the parameters.
      rank: r.
    """
    total = 0
    for shape in shapes:
        matrix = _matrix_shape(shape, rank)
        size = 1
        for length in shape:
            size *= length
        total += size if matrix is None else rank * sum(matrix)
    return total


def _matrix_shape(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
    """Return the shape of a tensor as a matrix; None if it is sent without compression."""
    if len(shape) < 2:
        return None
    rows, columns = 1, shape[-1]
    for length in shape[:-1]:
        rows *= length
    return None if rank * (rows + columns) >= rows * columns else (rows, columns)


def _start(index: int, start: Array) -> Array:
    """Return the start [m, r] of the power iteration: the Q of the previous gradient step.

    A column that was linearly dependent is zero and would remain zero, so it is replaced by a
    random column.
    """
    first = jax.random.normal(jax.random.key(index), start.shape, jnp.float32)
    return jnp.where(jnp.any(start != 0, axis=0, keepdims=True), start, first)


def _mean_together(arrays: list[Array], collectives: Collectives) -> list[Array]:
    """Average float32 arrays over devices in a single all-reduce."""
    if not arrays:
        return []
    flat = jnp.concatenate([array.ravel().astype(jnp.float32) for array in arrays])
    mean, means, offset = collectives.mean(flat), [], 0
    for array in arrays:
        means.append(mean[offset : offset + array.size].reshape(array.shape))
        offset += array.size
    return means
