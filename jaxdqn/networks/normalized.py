"""Observations normalised by their running mean and variance, as part of a network.

The statistics are stored with the parameters (``NormalizedParams``), so that they are saved,
restored, evaluated and exported together. Training sets them by ``first_statistics`` and
changes them by ``update_statistics`` with the rows of each iteration; evaluations do not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdqn.communication.collectives import Collectives
from jaxdqn.errors import reject
from jaxdqn.types import (
    Array,
    EnvSpec,
    Hyper,
    Network,
    NormalizedParams,
    ObservationStatistics,
    Params,
    PyTree,
    QOutput,
)

_EPSILON = 1e-8
"""Added to the variance, so that constant elements of an observation become 0 and not NaN."""
_CLIP = 10.0
"""Clip of normalised observations, in standard deviations."""


def with_normalization(network: Network, spec: EnvSpec) -> Network:
    """Return the network with normalised observations; its parameters are ``NormalizedParams``.

    Raises:
      ValueError: if the observations are not floating-point numbers.
    """
    if not jnp.issubdtype(spec.obs_dtype, jnp.floating):
        reject(
            "normalize_observations", True, f"False for observations of dtype {spec.obs_dtype}; "
            "only float observations are normalised"
        )  # fmt: skip

    def init(key: Array, obs: Array) -> NormalizedParams:
        zeros = jnp.zeros(spec.obs_shape, jnp.float32)
        statistics = ObservationStatistics(zeros, jnp.ones_like(zeros), jnp.float32(0))
        return NormalizedParams(network.init(key, obs), statistics)

    def apply(
        params: NormalizedParams, key: Array | None, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        obs = normalize(obs, params.observations)
        return network.apply(params.network, key, carry, obs, first)

    def unroll(
        params: NormalizedParams, key: Array | None, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        assert network.unroll is not None
        obs = jax.vmap(normalize, in_axes=(0, None))(obs, params.observations)
        return network.unroll(params.network, key, carry, obs, first)

    def refresh(params: NormalizedParams) -> NormalizedParams:
        assert network.refresh is not None
        return params._replace(network=network.refresh(params.network))

    return network._replace(
        init=init,
        apply=apply,
        unroll=None if network.unroll is None else unroll,
        refresh=None if network.refresh is None else refresh,
    )


def normalize(obs: Array, statistics: ObservationStatistics) -> Array:
    """Return observations [B, O] or stacks [B, O, S] in standard deviations from the mean.

    They are clipped to 10 standard deviations. No gradient flows into the statistics.
    """
    mean, variance = jax.lax.stop_gradient((statistics.mean, statistics.variance))
    stacked = obs.ndim > mean.ndim + 1
    shape = (1, *mean.shape, *((1,) if stacked else ()))
    scale = jax.lax.rsqrt(variance + _EPSILON).reshape(shape)
    return jnp.clip((obs.astype(jnp.float32) - mean.reshape(shape)) * scale, -_CLIP, _CLIP)


def first_statistics(params: Params, obs: Array, collectives: Collectives) -> Params:
    """Return the parameters with the mean of the first observations [E, O] of all devices.

    Later updates measure deviations from the current mean, so that a large mean does not cause
    cancellation in the variance. The first observations are not counted. A mean
    that is not finite is replaced by 0.
    """
    total, _, valid = collectives.mean(_finite_sums(obs.astype(jnp.float32), 1))
    mean = total / jnp.maximum(valid, 1.0 / collectives.size)
    statistics = params.observations._replace(mean=jnp.where(jnp.isfinite(mean), mean, 0.0))
    return params._replace(observations=statistics)


def _finite_sums(values: Array, leading: int) -> tuple[Array, Array, Array]:
    """Sum values [..., O] and their squares over the leading axes, where a row is finite.

    Returns:
      [O] sum, [O] sum of squares, and [] float32, the number of rows without NaN or infinity.
    """
    axes, inner = tuple(range(leading)), tuple(range(leading, values.ndim))
    finite = jnp.all(jnp.isfinite(values), inner, keepdims=True)
    # The observation of a terminal state may be NaN: select, because 0 * NaN is NaN.
    kept = jnp.where(finite, values, 0.0)
    count = jnp.sum(finite.astype(jnp.float32))
    return jnp.sum(kept, axes), jnp.sum(jnp.square(kept), axes), count


def update_statistics(params: Params, obs: Array, collectives: Collectives) -> Params:
    """Return the parameters with statistics that include the rows of one iteration.

    The statistics are combined as in Chan et al. 1983, and are equal on all devices. Rows with NaN
    or infinity are left out and not counted. Elements whose square overflows keep their statistics.
    The count is a float32. After 2^24 iterations it no longer increases, and the statistics become
    exponential averages.

    Args:
      params: ``NormalizedParams``.
      obs: [K, E, O] of this device, or [K, E, O, S] with frame stacks, of which only the newest
        frame is used.
      collectives: collectives of the devices.
    """
    before = params.observations
    if obs.ndim > before.mean.ndim + 2:
        obs = obs[..., -1]
    deviation = obs.astype(jnp.float32) - before.mean[None, None]
    total, squares, valid = collectives.mean(_finite_sums(deviation, 2))
    least = 1.0 / collectives.size  # of ``valid``, a mean over devices, unless no row is finite
    mean, square = total / jnp.maximum(valid, least), squares / jnp.maximum(valid, least)
    batch = valid * collectives.size
    count = before.rows + batch
    weight = batch / jnp.maximum(count, 1.0)
    after = (
        before.mean + weight * mean,
        # (1-w) var + w (square - mean^2) + w (1-w) mean^2
        (1.0 - weight) * before.variance + weight * square - jnp.square(weight * mean),
    )
    finite = jnp.isfinite(after[0]) & jnp.isfinite(after[1])
    new_mean, variance = (
        jnp.where(finite, new, old)
        for new, old in zip(after, (before.mean, before.variance), strict=True)
    )
    statistics = ObservationStatistics(new_mean, jnp.maximum(variance, 0.0), count)
    return params._replace(observations=statistics)


def of_trained(
    optimizer: Callable[[Hyper], optax.GradientTransformation],
) -> Callable[[Hyper], optax.GradientTransformation]:
    """Apply an optimiser to the trained parameters only; weight decay spares the statistics."""

    def of_network(hyper: Hyper) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(optimizer(hyper))

        def update(
            updates: PyTree, state: PyTree, params: PyTree = None, **extra: object
        ) -> tuple[PyTree, PyTree]:
            network = None if params is None else params.network
            changes, state = inner.update(updates.network, state, network, **extra)
            zeros = jax.tree.map(jnp.zeros_like, updates.observations)
            return NormalizedParams(changes, zeros), state

        return optax.GradientTransformationExtraArgs(
            lambda params: inner.init(params.network), update
        )

    return of_network
