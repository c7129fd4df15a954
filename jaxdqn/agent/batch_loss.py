"""Loss of a batch, computed by a custom function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.losses import weighted_mean
from jaxdqn.types import Array, Batch, BatchLoss, Hyper, Network, Params


def make_batch_loss(network: Network, loss: BatchLoss) -> Callable[..., Any]:
    """Make the loss of a batch from a custom function.

    Its signature is ``loss_and_info(params, key, target_params, batch, weights[B], hyper) ->
    (loss, (abs_td[B], q_mean, extra))``. ``extra`` holds the means of the custom entries of the
    function's info. If the info has no ``abs_td``, the absolute loss replaces it. If it has no
    ``q_mean``, one more forward pass without noise computes it; this requires transitions.

    Args:
      network: network that computes ``q_mean`` if the loss does not return it.
      loss: see ``jaxdqn.types.BatchLoss``.
    """

    def loss_and_info(
        params: Params,
        key: Array,
        target_params: Params,
        batch: Any,
        weights: Array,
        hyper: Hyper,
    ) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
        losses, info = _checked(loss(params, target_params, key, batch, hyper), weights.shape)
        abs_td = info.pop("abs_td", jnp.abs(losses))
        q_mean = info.pop("q_mean", None)
        if q_mean is None:
            q_mean = _mean_q(network, params, batch)
        extra = {name: jnp.mean(value) for name, value in info.items()}
        return weighted_mean(losses, weights), (abs_td, jnp.mean(q_mean), extra)

    return loss_and_info


def _checked(result: Any, shape: tuple[int, ...]) -> tuple[Array, dict[str, Array]]:
    """Check the shapes that a custom loss returned; return its losses, and its info as float32."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise ValueError(
            f"loss: must return (losses, info), an array and a dict, not {type(result).__name__}"
        )
    losses, info = result
    if jnp.shape(losses) != shape or losses.dtype != jnp.float32:
        raise ValueError(
            f"loss: must return losses of shape {shape} float32, not {jnp.shape(losses)} "
            f"{getattr(losses, 'dtype', type(losses).__name__)}"
        )
    allowed = {"abs_td": (shape,)}
    for name, value in info.items():
        shapes = allowed.get(name, ((), shape))
        if jnp.shape(value) not in shapes:
            raise ValueError(
                f"loss: must return info[{name!r}] of shape {' or '.join(map(str, shapes))}, not "
                f"{jnp.shape(value)}"
            )
    return losses, {name: jnp.asarray(value).astype(jnp.float32) for name, value in info.items()}


def _mean_q(network: Network, params: Params, batch: Any) -> Array:
    """Return the mean Q-value of the actions in a batch, which must be of transitions."""
    if not isinstance(batch, Batch):
        raise ValueError("loss: must return info['q_mean'], the mean Q, for sequences")
    size = batch.a_tm1.shape[0]
    params = jax.lax.stop_gradient(params)
    carry, first = network.initial_carry(size), jnp.zeros(size, jnp.bool_)
    q_values = network.apply(params, None, carry, batch.obs_tm1, first)[0].q_values
    return jnp.mean(jnp.take_along_axis(q_values, batch.a_tm1[:, None], axis=1))
