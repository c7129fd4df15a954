"""Network, loss and optimiser made into an agent: how it acts, how it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxdqn.exploration import repeat_actions, select_actions
from jaxdqn.losses import (
    double_q_target,
    huber_loss,
    q_learning_target,
    squared_loss,
    td_error,
    weighted_mean,
)
from jaxdqn.optim import global_norm
from jaxdqn.target_update import periodic_update, polyak_update
from jaxdqn.types import (
    ActInfo,
    Agent,
    AgentState,
    Array,
    Batch,
    Exploration,
    Hyper,
    LearnInfo,
    Network,
    Params,
    PyTree,
)

Optimizer = Callable[[Hyper], optax.GradientTransformation]


def make_agent(
    network: Network,
    optimizer: Optimizer,
    *,
    double: bool = False,
    loss: Literal["huber", "squared"] = "huber",
    exploration: Literal["epsilon_greedy", "boltzmann"] = "epsilon_greedy",
    accumulate: int = 1,
    target_period: int = 100,
    polyak: bool = False,
) -> Agent:
    """Make a DQN agent (Mnih et al. 2015) from its parts.

    Args:
      network: the Q-network.
      optimizer: gives the gradient transformation for the (traced) hyper-parameters. It is
        given this device's gradient: over replicas its first link must average it, as
        ``make_optimizer`` has it and ``make_trainer`` sees to for your own.
      double: choose the bootstrap action by the online network (van Hasselt et al. 2016).
      loss: of a TD error.
      exploration: how ``act`` departs from greedy.
      accumulate: minibatches whose gradients are averaged into a gradient step;
        ``learn`` takes them as one batch.
      target_period: gradient steps between replacements of the target network.
      polyak: move the target by ``hyper.target_tau`` every gradient step instead.

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    for name, value in (("accumulate", accumulate), ("target_period", target_period)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    choices = (("loss", loss, ("huber", "squared")),
               ("exploration", exploration, ("epsilon_greedy", "boltzmann")))  # fmt: skip
    for name, choice, known in choices:
        if choice not in known:
            raise ValueError(f"{name}={choice!r}: must be one of {', '.join(known)}")
    loss_and_info = _make_loss(network, double=double, loss=loss)

    def init(key: Array, obs: Array, *, hyper: Hyper) -> AgentState:
        params = network.init(key, obs)
        return AgentState(
            params=params,
            # A copy, so that donating the state donates each buffer once.
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer(hyper).init(params),
            since_target=jnp.int32(0),
        )

    def act(
        key: Array, params: Params, carry: PyTree, obs: Array, first: Array, explore: Exploration
    ) -> tuple[Array, PyTree, ActInfo]:
        key_network, key_action, key_repeat = jax.random.split(key, 3)
        output, carry = network.apply(params, key_network, carry, obs, first)
        actions, prob = select_actions(exploration, key_action, output.q_values, explore)
        if not isinstance(explore.repeat, tuple):
            actions, prob = repeat_actions(key_repeat, output.q_values, actions, explore)
        return actions, carry, ActInfo(q=output.q_values, behaviour_prob=prob)

    def learn(
        key: Array, state: AgentState, batch: Batch, weights: Array, *, hyper: Hyper
    ) -> tuple[AgentState, LearnInfo]:
        def gradient(
            key: Array, batch: Batch, weights: Array
        ) -> tuple[Params, tuple[Array, Array, Array]]:
            compute = jax.value_and_grad(loss_and_info, has_aux=True)
            (value, (abs_td, q_mean)), grads = compute(
                state.params, key, state.target_params, batch, weights, hyper
            )
            return grads, (value, abs_td, q_mean)

        if accumulate == 1:
            grads, (value, abs_td, q_mean) = gradient(key, batch, weights)
        else:
            grads, (value, abs_td, q_mean) = _accumulate(
                gradient, accumulate, key, batch, weights, state.params
            )
        updates, opt_state = optimizer(hyper).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if polyak:
            target, since = polyak_update(params, state.target_params, hyper.target_tau), None
        else:
            target, since = periodic_update(
                params, state.target_params, state.since_target, target_period
            )
        state = AgentState(
            params=params,
            target_params=target,
            opt_state=opt_state,
            since_target=state.since_target if since is None else since,
        )
        info = LearnInfo(loss=value, abs_td=abs_td, grad_norm=global_norm(grads), q_mean=q_mean)
        return state, info

    return Agent(init=init, act=act, learn=learn, initial_carry=network.initial_carry)


def _make_loss(network: Network, *, double: bool, loss: str) -> Callable[..., Any]:
    def q_of(params: Params, key: Array, obs: Array) -> Array:
        batch_size = obs.shape[0]
        first = jnp.zeros(batch_size, jnp.bool_)
        carry = network.initial_carry(batch_size)
        return network.apply(params, key, carry, obs, first)[0].q_values

    def loss_and_info(
        params: Params,
        key: Array,
        target_params: Params,
        batch: Batch,
        weights: Array,
        hyper: Hyper,
    ) -> tuple[Array, tuple[Array, Array]]:
        key_online, key_target, key_selector = jax.random.split(key, 3)
        q_tm1 = q_of(params, key_online, batch.obs_tm1)
        q_t = q_of(target_params, key_target, batch.obs_t)
        if double:
            selector = q_of(params, key_selector, batch.obs_t)
            target = jax.vmap(double_q_target)(batch.r_t, batch.discount_t, q_t, selector)
        else:
            target = jax.vmap(q_learning_target)(batch.r_t, batch.discount_t, q_t)
        td = jax.vmap(td_error)(q_tm1, batch.a_tm1, target)
        if loss == "huber":
            losses = jax.vmap(huber_loss, in_axes=(0, None))(td, hyper.huber_delta)
        else:
            losses = jax.vmap(squared_loss)(td)
        # The TD error is target minus prediction, so this is the chosen action's Q.
        q_mean = jnp.mean(target - td)
        return weighted_mean(losses, weights), (jnp.abs(td), q_mean)

    return loss_and_info


def _accumulate(
    gradient: Callable[..., Any],
    parts: int,
    key: Array,
    batch: Batch,
    weights: Array,
    params: Params,
) -> tuple[Params, tuple[Array, Array, Array]]:
    """Average the gradients of ``parts`` equal minibatches, one after the other."""

    def split(leaf: Array) -> Array:
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    def add(total: Params, part: tuple[Array, Batch, Array]) -> tuple[Params, Any]:
        grads, info = gradient(*part)
        return jax.tree.map(jnp.add, total, grads), info

    zeros = jax.tree.map(jnp.zeros_like, params)
    minibatches = (jax.random.split(key, parts), jax.tree.map(split, batch), split(weights))
    total, (values, abs_td, q_means) = jax.lax.scan(add, zeros, minibatches)
    grads = jax.tree.map(lambda leaf: leaf / parts, total)
    return grads, (jnp.mean(values), abs_td.ravel(), jnp.mean(q_means))
