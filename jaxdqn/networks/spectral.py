"""Spectral normalisation of convolutions (Miyato et al. 2018), with its state in the parameters.

A kernel, reshaped to a matrix W [inputs, outputs], is divided by an estimate of its largest
singular value. The estimate takes one step of power iteration from a vector that is kept between
steps. The vector is stored as a parameter with the kernel, so it is saved, restored, copied to the
target network, averaged and exported with it. It has no gradient, so no optimiser changes it.
``Network.refresh`` updates it from the new kernel, once after each gradient step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Network, Params

POWER_VECTOR = "power_vector"
"""Name of the parameter with the vector, in the same dict as ``kernel``."""
INITIAL_ITERATIONS = 15
"""Steps of power iteration on the initial parameters, from a random vector."""
_SMALLEST = 1e-12


def spectral_norm(kernel: Array, vector: Array) -> Array:
    """Return the estimate of the largest singular value of a kernel, ``[]``.

    The estimate is ``|W u|`` for the unit vector u. It is exact if u is the leading right singular
    vector. The gradient flows to the kernel only, as through ``v^T W u`` with constant u and v
    (Miyato et al. 2018, eq. 11).

    Args:
      kernel: ``[..., F]`` float32; the leading axes are the inputs.
      vector: ``[F]`` float32, not 0.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    right = jax.lax.stop_gradient(_unit(vector))
    left = jax.lax.stop_gradient(_unit(matrix @ right))
    return left @ matrix @ right


def iterate(kernel: Array, vector: Array) -> Array:
    """Return the vector after a step of power iteration, a unit vector ``[F]``.

    Args:
      kernel: ``[..., F]`` float32
      vector: ``[F]`` float32
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return _unit(matrix.T @ _unit(matrix @ vector))


def refresh(params: Params) -> Params:
    """Return the parameters with each power vector after one step of power iteration.

    Args:
      params: nested dicts, as returned by flax.
    """
    if not isinstance(params, Mapping):
        return params
    made = {name: refresh(value) for name, value in params.items()}
    if POWER_VECTOR in params:
        made[POWER_VECTOR] = iterate(params["kernel"], params[POWER_VECTOR])
    return made


def with_power_iteration(network: Network) -> Network:
    """Return the network with ``refresh``, which ``init`` applies ``INITIAL_ITERATIONS`` times."""

    def init(key: Array, obs: Array) -> Params:
        def again(_: Any, params: Params) -> Params:
            return refresh(params)

        return jax.lax.fori_loop(0, INITIAL_ITERATIONS, again, network.init(key, obs))

    return network._replace(init=init, refresh=refresh)


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(vector))), _SMALLEST)
