"""The optimiser chain: all-reduce, clip, normalise, transform, scale."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdqn.config import Config
from jaxdqn.types import ALONE, Array, Collectives, Hyper, PyTree

_TINY = 1e-30


def make_optimizer(
    config: Config, collectives: Collectives = ALONE
) -> Callable[[Hyper], optax.GradientTransformation]:
    """Make the gradient transformation that a configuration describes.

    The result is called inside the traced step with the traced hyper-parameters;
    the structure of its state does not depend on them. The links, in order:
    mean over devices, clip by value, clip by global norm, unit global norm,
    Adam, RMSProp or RAdam, learning rate and its schedule. So clipping and
    normalising see the gradient of the global batch.
    """

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        links = [all_reduce(collectives)]
        if config.clip_value is not None:
            links.append(optax.clip(hyper.clip_value))
        if config.clip_norm is not None:
            links.append(optax.clip_by_global_norm(hyper.clip_norm))
        if config.normalize_gradients:
            links.append(unit_norm())
        links.append(flush_tiny(_scaling(config)))
        links.append(_learning_rate(config, hyper))
        # One vector: Adam over it is one fused loop, not one for each tensor.
        return _standard_promotion(optax.flatten(optax.chain(*links)))

    return optimizer


def all_reduce(collectives: Collectives) -> optax.GradientTransformation:
    """Average updates over devices."""
    return optax.stateless(lambda updates, _: collectives.mean(updates))


def unit_norm() -> optax.GradientTransformation:
    """Scale updates to global norm 1; zero updates stay zero."""

    def normalize(updates: PyTree, _: PyTree) -> PyTree:
        norm = optax.global_norm(updates)
        scale = jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0)
        return jax.tree.map(lambda leaf: leaf * scale, updates)

    return optax.stateless(normalize)


def flush_tiny(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Set the inner state's floats below 1e-30 in size to zero after each update.

    A weight whose gradient stays zero lets its moments decay into subnormal
    numbers, on which processors are many times slower. Moments this small are
    lost in the optimiser's epsilon, so the updates do not change.
    """

    def flush(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(jnp.abs(leaf) < _TINY, jnp.zeros_like(leaf), leaf)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(updates, state, params)
        return updates, jax.tree.map(flush, state)

    return optax.GradientTransformation(inner.init, update)


def _standard_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let optax, which mixes int32 counts with floats, run under strict promotion."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _scaling(config: Config) -> optax.GradientTransformation:
    if config.optimizer == "adam":
        return optax.scale_by_adam(eps=config.adam_epsilon)
    if config.optimizer == "radam":
        return optax.scale_by_radam(eps=config.adam_epsilon)
    return optax.scale_by_rms(eps=config.adam_epsilon)


def _learning_rate(config: Config, hyper: Hyper) -> optax.GradientTransformation:
    if config.learning_rate_schedule == "constant":
        return optax.scale_by_learning_rate(hyper.learning_rate)
    steps = config.total_gradient_steps
    if config.learning_rate_schedule == "linear":
        course = optax.linear_schedule(1.0, 0.0, steps)
    else:
        course = optax.cosine_decay_schedule(1.0, steps)
    return optax.scale_by_schedule(lambda count: -hyper.learning_rate * course(count))
