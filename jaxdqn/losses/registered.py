"""Losses selected by the configuration: from one example to loss and priority, ``[]`` float32."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.losses.categorical import categorical_clipped, categorical_loss, categorical_target
from jaxdqn.losses.quantile import quantile_huber_loss, quantile_soft_target, quantile_target
from jaxdqn.losses.targets import (
    double_q_target,
    q_learning_target,
    rescale,
    soft_q_target,
    unscale,
)
from jaxdqn.losses.td import huber_loss, squared_loss, td_error
from jaxdqn.types import Array, Atoms, Hyper, PyTree, QOutput


class Example(NamedTuple):
    """Inputs of a loss for one transition; the agent vmaps the loss over a batch."""

    online_tm1: QOutput
    """output of the online network at the start: the prediction, the only part with a gradient"""
    a_tm1: Array
    """[] int32"""
    r_t: Array
    """[] float32, the (n-step) return, including any bonus"""
    discount_t: Array
    """[] float32, gamma^m, or 0 after a terminal state"""
    target_t: PyTree
    """QOutput, output of the target network at the bootstrap observation, with the value
    ``ILLEGAL`` for illegal actions; empty if ``r_t`` is already the target"""
    selector_t: PyTree
    """[A] float32, Q-values of the online network at the bootstrap observation, ``ILLEGAL`` for
    illegal actions; their argmax is the bootstrap action of double Q-learning. Empty if the target
    network selects the action"""
    temperature: PyTree
    """[] float32, temperature of soft targets; empty if the bootstrap is the maximum of Q"""
    rescaling: PyTree = ()
    """[] float32, epsilon of ``rescale``; empty if the network's values are not rescaled"""


def q_target(example: Example) -> Array:
    """Return the scalar target ``[]`` of an example, for a loss on action values."""
    if isinstance(example.target_t, tuple) and not example.target_t:
        return example.r_t
    if not isinstance(example.rescaling, tuple):
        # Bootstrap in the units of the return, then rescale the target for the prediction.
        plain = unscale(example.target_t.q_values, example.rescaling)
        target_t = example.target_t._replace(q_values=plain)
        target = q_target(example._replace(target_t=target_t, rescaling=()))
        return jax.lax.stop_gradient(rescale(target, example.rescaling))
    r_t, discount_t, q_t = example.r_t, example.discount_t, example.target_t.q_values
    if not isinstance(example.temperature, tuple):
        return soft_q_target(r_t, discount_t, q_t, example.temperature)
    if not isinstance(example.selector_t, tuple):
        return double_q_target(r_t, discount_t, q_t, example.selector_t)
    return q_learning_target(r_t, discount_t, q_t)


def huber(example: Example, hyper: Hyper) -> tuple[Array, Array]:
    """Return the Huber loss of the TD error, and the absolute TD error."""
    td = td_error(example.online_tm1.q_values, example.a_tm1, q_target(example))
    return huber_loss(td, hyper.huber_delta), jnp.abs(td)


def squared(example: Example, hyper: Hyper) -> tuple[Array, Array]:
    """Return the squared loss of the TD error, and the absolute TD error."""
    td = td_error(example.online_tm1.q_values, example.a_tm1, q_target(example))
    return squared_loss(td), jnp.abs(td)


def categorical(example: Example, hyper: Hyper) -> tuple[Array, Array]:
    """Return the cross-entropy of C51, and the Kullback-Leibler divergence from the target.

    The divergence is the priority of Rainbow (Hessel et al. 2018). It is 0 if prediction and
    target agree.
    """
    predicted, atoms = example.online_tm1.distribution
    target = categorical_target(
        example.r_t,
        example.discount_t,
        example.target_t.distribution.logits,
        _selector(example),
        atoms,
    )
    loss = categorical_loss(predicted[example.a_tm1], target)
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target))
    return loss, jax.lax.stop_gradient(jnp.maximum(loss - entropy, 0.0))


def target_metrics(example: Example) -> dict[str, Array]:
    """Return metrics ``[]`` of an example's target by name.

    A categorical distribution has ``clipped_probability``, the probability of the target outside
    the range of the atoms. Other targets have no metrics.
    """
    if not isinstance(example.online_tm1.distribution, Atoms):
        return {}
    logits, atoms = example.target_t.distribution
    arguments = (example.r_t, example.discount_t, logits, _selector(example), atoms)
    return {"clipped_probability": categorical_clipped(*arguments)}


def quantile(example: Example, hyper: Hyper) -> tuple[Array, Array]:
    """Return the quantile Huber loss of QR-DQN and IQN, and the absolute TD error of the means."""
    values, fractions = example.online_tm1.distribution
    r_t, discount_t = example.r_t, example.discount_t
    values_t = example.target_t.distribution.values
    if isinstance(example.temperature, tuple):
        target = quantile_target(r_t, discount_t, values_t, _selector(example))
    else:
        target = quantile_soft_target(
            r_t, discount_t, values_t, example.target_t.q_values, example.temperature
        )
    predicted = values[example.a_tm1]
    loss = quantile_huber_loss(predicted, fractions, target, hyper.huber_delta)
    td = jnp.mean(target) - jnp.mean(predicted)
    return loss, jax.lax.stop_gradient(jnp.abs(td))


def _selector(example: Example) -> Array:
    if isinstance(example.selector_t, tuple):
        return example.target_t.q_values
    return example.selector_t
