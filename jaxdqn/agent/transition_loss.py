"""Loss of a batch of n-step transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.agent.retrace import retrace_targets
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.losses import (
    Example,
    legal_values,
    munchausen_bonus,
    target_metrics,
    weighted_mean,
)
from jaxdqn.types import Array, Batch, Hyper, Network, Params, Path, PyTree, QOutput


def make_transition_loss(
    network: Network,
    *,
    double: bool,
    loss: str,
    bootstrap: str,
    target_epsilon: float | None = None,
) -> Callable[..., Any]:
    """Make the loss of a ``Batch`` for a feed-forward network.

    Its signature is ``loss_and_info(params, key, target_params, batch, weights[B], hyper)
    -> (loss, (abs_td[B], q_mean, extra))``. For the arguments see ``make_agent``.
    """
    if target_epsilon is None:
        examples_of = _make_examples(network, double=double, bootstrap=bootstrap)
    else:
        examples_of = _make_path_examples(network, double=double, epsilon=target_epsilon)

    def loss_and_info(
        params: Params,
        key: Array,
        target_params: Params,
        batch: Batch,
        weights: Array,
        hyper: Hyper,
    ) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
        examples = examples_of(params, key, target_params, batch, hyper)
        loss_of_example = LOSSES[loss].load()  # loaded here, because acting alone needs no loss
        losses, abs_td = jax.vmap(loss_of_example, in_axes=(0, None))(examples, hyper)
        q_values = examples.online_tm1.q_values
        chosen_q = jax.vmap(lambda q, action: q[action])(q_values, batch.a_tm1)
        extra = jax.tree.map(jnp.mean, jax.vmap(target_metrics)(examples))
        return weighted_mean(losses, weights), (abs_td, jnp.mean(chosen_q), extra)

    return loss_and_info


def _make_examples(network: Network, *, double: bool, bootstrap: str) -> Callable[..., Example]:
    """Make ``examples_of(params, key, target_params, batch, hyper) -> Example`` [B, ...]."""

    output_of = _make_output(network)

    def examples_of(
        params: Params, key: Array, target_params: Params, batch: Batch, hyper: Hyper
    ) -> Example:
        # Munchausen applies the target network twice with key_target, so that a noisy network uses
        # the same noise for the bonus and the bootstrap.
        key_online, key_target, key_selector = jax.random.split(key, 3)
        online_tm1 = output_of(params, key_online, batch.obs_tm1)
        r_t, temperature = batch.r_t, hyper.entropy_temperature
        if bootstrap == "munchausen":
            policy_q = output_of(target_params, key_target, batch.obs_tm1, batch.legal_tm1).q_values
            r_t = r_t + jax.vmap(munchausen_bonus, in_axes=(0, 0, None, None, None))(
                policy_q, batch.a_tm1, temperature, hyper.munchausen_scale, hyper.munchausen_clip
            )
        soft = bootstrap in ("soft", "munchausen")

        def at_bootstrap(params: Params, key: Array) -> QOutput:
            return output_of(params, key, batch.obs_t, batch.legal_t)

        target_t = () if bootstrap == "none" else at_bootstrap(target_params, key_target)
        return Example(
            online_tm1=online_tm1,
            a_tm1=batch.a_tm1,
            r_t=r_t,
            discount_t=batch.discount_t,
            target_t=target_t,
            selector_t=jax.lax.stop_gradient(at_bootstrap(params, key_selector).q_values)
            if double
            else (),
            temperature=jnp.broadcast_to(temperature, r_t.shape) if soft else (),
        )

    return examples_of


def _make_output(network: Network) -> Callable[..., QOutput]:
    """Make ``output_of(params, key, obs[B, O], legal[B, A] or ()) -> QOutput``."""

    def output_of(params: Params, key: Array, obs: Array, legal: PyTree = ()) -> QOutput:
        batch_size = obs.shape[0]
        first = jnp.zeros(batch_size, jnp.bool_)
        carry = network.initial_carry(batch_size)
        output = network.apply(params, key, carry, obs, first)[0]
        return output._replace(q_values=legal_values(output.q_values, legal))

    return output_of


def _make_path_examples(
    network: Network, *, double: bool, epsilon: float
) -> Callable[..., Example]:
    """Make ``examples_of`` as ``_make_examples``, for batches with paths: ``r_t`` is the target."""
    output_of = _make_output(network)

    def examples_of(
        params: Params, key: Array, target_params: Params, batch: Batch, hyper: Hyper
    ) -> Example:
        path = batch.path
        if not isinstance(path, Path):
            raise ValueError(
                "path: must be in the batches of your replay, as path of Batch, with "
                "importance_ratios"
            )
        key_online, key_target, key_selector = jax.random.split(key, 3)
        shape = path.a_t.shape

        def along_path(params: Params, key: Array) -> Array:
            obs, legal = jax.tree.map(
                lambda leaf: leaf.reshape(shape[0] * shape[1], *leaf.shape[2:]),
                (path.obs_t, path.legal_t),
            )
            q = output_of(params, key, obs, legal).q_values
            return q.reshape(*shape, q.shape[-1])

        values = along_path(target_params, key_target)
        selector = along_path(params, key_selector) if double else values
        return Example(
            online_tm1=output_of(params, key_online, batch.obs_tm1),
            a_tm1=batch.a_tm1,
            r_t=retrace_targets(path, values, jax.lax.stop_gradient(selector), epsilon),
            discount_t=jnp.zeros(shape[:1], jnp.float32),
            target_t=(),
            selector_t=(),
            temperature=(),
        )

    return examples_of
