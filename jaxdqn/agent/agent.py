"""Agent: acting and the gradient step, built from a network, a loss and an optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdqn.agent.batch_loss import make_batch_loss
from jaxdqn.agent.exploration import repeat_actions, select_actions
from jaxdqn.agent.options import (
    AgentOptions,
    Bootstrap,
    ExplorationKind,
    Optimizer,
    check_options,
)
from jaxdqn.agent.sequence_loss import Sequences, make_sequence_loss
from jaxdqn.agent.target_update import periodic_update, polyak_update
from jaxdqn.agent.transition_loss import make_transition_loss
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.losses import is_masked, legal_values
from jaxdqn.tree import global_norm
from jaxdqn.types import (
    ActInfo,
    Agent,
    AgentState,
    Array,
    Batch,
    BatchLoss,
    Exploration,
    Explore,
    Hyper,
    LearnInfo,
    Network,
    Params,
    Path,
    PyTree,
    QOutput,
)


def make_agent(
    network: Network,
    optimizer: Optimizer,
    *,
    double: bool = False,
    loss: str | BatchLoss = "huber",
    bootstrap: Bootstrap = "greedy",
    exploration: ExplorationKind | Explore = "epsilon_greedy",
    accumulate: int = 1,
    target_period: int = 100,
    polyak: bool = False,
    sequences: Sequences | None = None,
    rescale: bool = False,
    masked: bool = False,
    target_epsilon: float | None = None,
    measure_gradient: Callable[[Params, Hyper], dict[str, Array]] | None = None,
) -> Agent:
    """Make a DQN agent (Mnih et al. 2015) from its parts.

    Args:
      network: the Q-network.
      optimizer: function that returns the gradient transformation for the (traced)
        hyper-parameters. The transformation receives the gradient of this device. With several
        replicas its first link must average the gradient, as in ``make_optimizer``;
        ``make_trainer`` adds this link to a custom optimiser.
      double: select the bootstrap action with the online network (van Hasselt et al. 2016).
      loss: name in ``jaxdqn.config.loss_registry.LOSSES``, whose head the network must have, or a
        ``jaxdqn.types.BatchLoss``. A ``BatchLoss`` computes its own targets, so ``double`` and
        ``rescale`` must be False, ``target_epsilon`` None, and ``bootstrap`` greedy (with target
        network) or none (without).
      bootstrap: greedy: the maximum target value; soft: the soft value of the Boltzmann policy at
        ``hyper.entropy_temperature``; munchausen: soft, plus a log-policy bonus on the reward
        (Vieillard et al. 2020); none: ``Batch.r_t`` is the target and there is no target network.
      exploration: behaviour policy of ``act``, by name or as a ``jaxdqn.types.Explore``.
      accumulate: number of minibatches whose gradients are averaged in one gradient step; ``learn``
        receives them as one batch.
      target_period: gradient steps between two copies of the parameters to the target network.
      polyak: if True, ``target_period`` is ignored and the target moves by ``hyper.target_tau`` at
        every gradient step.
      sequences: sizes of the sequences for a recurrent network. ``learn`` then takes rows
        [B, L, ...] instead of a ``Batch``; their ``extras`` [B, ...] hold the carry before the
        first row.
      rescale: learn values on the scale of ``jaxdqn.losses.rescale``; only with ``sequences``.
      masked: reject batches without masks of legal actions, which the targets need.
      target_epsilon: epsilon of an epsilon-greedy target policy, whose targets are computed from
        ``Batch.path`` with importance ratios; None for n-step targets. Only with a loss of action
        values, the greedy bootstrap, and transitions.
      measure_gradient: ``measure_gradient(grads, hyper)``, which computes
        ``LearnInfo.diagnostics`` from this device's gradient.

    Raises:
      ValueError: if an argument is invalid, or two arguments exclude each other.
    """
    options = AgentOptions(
        double=double,
        loss=loss,
        bootstrap=bootstrap,
        exploration=exploration,
        accumulate=accumulate,
        target_period=target_period,
        polyak=polyak,
        sequences=sequences,
        rescale=rescale,
        masked=masked,
        target_epsilon=target_epsilon,
        measure_gradient=measure_gradient,
    )
    check_options(options)

    def init(key: Array, obs: Array, *, hyper: Hyper) -> AgentState:
        params = network.init(key, obs)
        return AgentState(
            params=params,
            # A copy, because each buffer of a donated state may appear in it only once.
            target_params=() if bootstrap == "none" else jax.tree.map(jnp.copy, params),
            opt_state=optimizer(hyper).init(params),
            since_target=jnp.int32(0),
        )

    gradient = _make_gradient_and_info(network, options)
    apply = _make_apply(network, optimizer, options)
    return Agent(
        init=init,
        act=_make_act(network, options),
        learn=_make_learn(gradient, apply),
        initial_carry=network.initial_carry,
        target_period=None if bootstrap == "none" or polyak else target_period,
        gradient=gradient,
        apply=apply,
    )


def _make_act(
    network: Network, options: AgentOptions
) -> Callable[..., tuple[Array, PyTree, ActInfo]]:
    def act(
        key: Array,
        params: Params,
        carry: PyTree,
        obs: Array,
        first: Array,
        exploration: Exploration | None,
        legal: PyTree = (),
    ) -> tuple[Array, PyTree, ActInfo]:
        if exploration is None:
            output, carry = network.apply(params, None, carry, obs, first)
            q = legal_values(output.q_values, legal)
            actions = jnp.argmax(q, axis=-1).astype(jnp.int32)
            return actions, carry, ActInfo(q, jnp.ones(actions.shape, jnp.float32))
        key_network, key_action, key_repeat = jax.random.split(key, 3)
        if network.noisy:
            output, carry = _apply_per_env(network, params, key_network, carry, obs, first)
        else:
            output, carry = network.apply(params, key_network, carry, obs, first)
        q = legal_values(output.q_values, legal)
        exploration = exploration._replace(legal=legal)
        if callable(options.exploration):
            actions, prob = _checked(*options.exploration(key_action, q, exploration), q)
            return actions, carry, ActInfo(q=q, behaviour_prob=prob)
        actions, prob = select_actions(options.exploration, key_action, q, exploration)
        if not isinstance(exploration.repeat, tuple):
            actions, prob = repeat_actions(key_repeat, q, actions, exploration)
        return actions, carry, ActInfo(q=q, behaviour_prob=prob)

    return act


def _checked(actions: Array, prob: Array, q: Array) -> tuple[Array, Array]:
    """Return the result of a custom exploration, after checking shapes and dtypes."""
    for name, array, dtype in (("actions", actions, jnp.int32), ("prob", prob, jnp.float32)):
        if array.shape != q.shape[:1] or array.dtype != dtype:
            raise ValueError(
                f"explore: must return {name} of shape {q.shape[:1]} {jnp.dtype(dtype)}, not "
                f"{array.shape} {array.dtype}"
            )
    return actions, prob


def _apply_per_env(
    network: Network, params: Params, key: Array, carry: PyTree, obs: Array, first: Array
) -> tuple[QOutput, PyTree]:
    """Apply the network to each environment with independent noise."""

    def apply(key: Array, *inputs: Any) -> Any:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], inputs)
        outputs = network.apply(params, key, *batch_of_one)
        return jax.tree.map(lambda leaf: leaf[0], outputs)

    return jax.vmap(apply)(jax.random.split(key, obs.shape[0]), carry, obs, first)


def _make_learn(
    gradient: Callable[..., tuple[Params, LearnInfo]], apply: Callable[..., AgentState]
) -> Callable[..., tuple[AgentState, LearnInfo]]:
    def learn(
        key: Array, state: AgentState, batch: Batch, weights: Array, *, hyper: Hyper
    ) -> tuple[AgentState, LearnInfo]:
        grads, info = gradient(key, state, batch, weights, hyper=hyper)
        return apply(state, grads, info.loss, hyper=hyper), info

    return learn


def _make_gradient_and_info(
    network: Network, options: AgentOptions
) -> Callable[..., tuple[Params, LearnInfo]]:
    """Make ``Agent.gradient``."""
    compute, measure = _make_gradient(network, options), options.measure_gradient

    def gradient(
        key: Array, state: AgentState, batch: Batch, weights: Array, *, hyper: Hyper
    ) -> tuple[Params, LearnInfo]:
        grads, (loss, abs_td, q_mean, extra) = compute(key, state, batch, weights, hyper)
        found = () if measure is None else measure(grads, hyper)
        return grads, LearnInfo(loss, abs_td, global_norm(grads), q_mean, extra, found)

    return gradient


def _make_apply(
    network: Network, optimizer: Optimizer, options: AgentOptions
) -> Callable[..., AgentState]:
    """Make ``Agent.apply``."""

    def apply(state: AgentState, grads: Params, loss: Array, *, hyper: Hyper) -> AgentState:
        transformation = optimizer(hyper)
        # Transformations such as optax.contrib.reduce_on_plateau read the loss.
        takes_value = isinstance(transformation, optax.GradientTransformationExtraArgs)
        value = {"value": loss} if takes_value else {}
        updates, opt_state = transformation.update(grads, state.opt_state, state.params, **value)
        params = optax.apply_updates(state.params, updates)
        if network.refresh is not None:
            params = network.refresh(params)
        since_target = state.since_target
        if options.bootstrap == "none":
            target_params: Params = ()
        elif options.polyak:
            target_params = polyak_update(params, state.target_params, hyper.target_tau)
        else:
            target_params, since_target = periodic_update(
                params, state.target_params, since_target, options.target_period
            )
        return AgentState(params, target_params, opt_state, since_target)

    return apply


def _make_gradient(
    network: Network, options: AgentOptions
) -> Callable[..., tuple[Params, _LossInfo]]:
    """Make ``gradient(key, state, batch, weights, hyper) -> (grads, info)``."""
    if callable(options.loss):
        loss_and_info = make_batch_loss(network, options.loss)
    elif options.sequences is None:
        loss_and_info = make_transition_loss(
            network,
            double=options.double,
            loss=options.loss,
            bootstrap=options.bootstrap,
            target_epsilon=options.target_epsilon,
        )
    else:
        loss_and_info = make_sequence_loss(
            network,
            LOSSES[options.loss].load(),
            double=options.double,
            sequences=options.sequences,
            rescale=options.rescale,
        )
    compute = jax.value_and_grad(loss_and_info, has_aux=True)
    needs_masks = options.masked and options.bootstrap != "none" and not callable(options.loss)

    def gradient(
        key: Array, state: AgentState, batch: Batch, weights: Array, hyper: Hyper
    ) -> tuple[Params, _LossInfo]:
        if needs_masks:
            _check_masks(batch)

        def of_minibatch(key: Array, batch: Batch, weights: Array) -> tuple[Params, _LossInfo]:
            (loss, info), grads = compute(
                state.params, key, state.target_params, batch, weights, hyper
            )
            return grads, (loss, *info)

        if options.accumulate == 1:
            return of_minibatch(key, batch, weights)
        return _accumulate(of_minibatch, options.accumulate, key, batch, weights, state.params)

    return gradient


def _check_masks(batch: Any) -> None:
    """Check that a batch, or a ``Row`` of sequences, contains the masks that the targets need."""
    if isinstance(batch, Batch):
        target = batch.path if isinstance(batch.path, Path) else batch
        masks = {"legal_tm1": batch.legal_tm1, "legal_t": target.legal_t}
    else:
        masks = {"legal": batch.legal}
    for name, mask in masks.items():
        if not is_masked(mask):
            raise ValueError(
                f"{name}: must be in the batches of your replay or learning, as {name} of "
                f"{type(batch).__name__}, with an environment that masks actions"
            )


_LossInfo = tuple[Array, Array, Array, dict[str, Array]]
"""The loss [], ``abs_td`` [B], ``q_mean`` [], and the metrics of the loss."""


def _accumulate(
    gradient: Callable[..., Any],
    parts: int,
    key: Array,
    batch: Batch,
    weights: Array,
    params: Params,
) -> tuple[Params, _LossInfo]:
    """Average the gradients of ``parts`` equal minibatches, computed one after the other."""

    def split(leaf: Array) -> Array:
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    def add(total: Params, minibatch: tuple[Array, Batch, Array]) -> tuple[Params, Any]:
        grads, info = gradient(*minibatch)
        return jax.tree.map(jnp.add, total, grads), info

    zeros = jax.tree.map(jnp.zeros_like, params)
    minibatches = (jax.random.split(key, parts), jax.tree.map(split, batch), split(weights))
    total, (losses, abs_td, q_means, extras) = jax.lax.scan(add, zeros, minibatches)
    grads = jax.tree.map(lambda leaf: leaf / parts, total)
    extra = jax.tree.map(jnp.mean, extras)
    return grads, (jnp.mean(losses), abs_td.ravel(), jnp.mean(q_means), extra)
