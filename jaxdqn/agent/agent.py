"""Network, loss and optimiser made into an agent: how it acts, how it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxdqn.agent.exploration import repeat_actions, select_actions
from jaxdqn.agent.sequence_loss import Sequences, make_sequence_loss
from jaxdqn.agent.target_update import periodic_update, polyak_update
from jaxdqn.agent.transition_loss import make_transition_loss
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.tree import global_norm
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
    QOutput,
)

Optimizer = Callable[[Hyper], optax.GradientTransformation]


def make_agent(
    network: Network,
    optimizer: Optimizer,
    *,
    double: bool = False,
    loss: str = "huber",
    bootstrap: Literal["greedy", "soft", "munchausen", "none"] = "greedy",
    exploration: Literal["epsilon_greedy", "boltzmann"] = "epsilon_greedy",
    accumulate: int = 1,
    target_period: int = 100,
    polyak: bool = False,
    sequences: Sequences | None = None,
    rescale: bool = False,
) -> Agent:
    """Make a DQN agent (Mnih et al. 2015) from its parts.

    Args:
      network: the Q-network.
      optimizer: gives the gradient transformation for the (traced) hyper-parameters. It is
        given this device's gradient: over replicas its first link must average it, as
        ``make_optimizer`` has it and ``make_trainer`` sees to for your own.
      double: choose the bootstrap action by the online network (van Hasselt et al. 2016).
      loss: name in ``jaxdqn.config.loss_registry.LOSSES``; the network needs its head.
      bootstrap: by the greatest value, or by the soft value of the Boltzmann policy
        (``hyper.entropy_temperature``); munchausen adds its bonus to the reward
        (Vieillard et al. 2020). With none ``Batch.r_t`` is the target, and there is no
        target network.
      exploration: how ``act`` departs from greedy.
      accumulate: minibatches whose gradients are averaged into a gradient step;
        ``learn`` takes them as one batch.
      target_period: gradient steps between replacements of the target network.
      polyak: move the target by ``hyper.target_tau`` every gradient step instead.
      sequences: for a network with a carry: ``learn`` takes rows [B, L, ...] whose ``extras``
        are the carries, and not a ``Batch``.
      rescale: learn values by ``jaxdqn.losses.rescale``; with ``sequences`` only.

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    for name, value in (("accumulate", accumulate), ("target_period", target_period)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    choices = (("loss", loss, tuple(LOSSES)),
               ("bootstrap", bootstrap, ("greedy", "soft", "munchausen", "none")),
               ("exploration", exploration, ("epsilon_greedy", "boltzmann")))  # fmt: skip
    for name, choice, known in choices:
        if choice not in known:
            raise ValueError(f"{name}={choice!r}: must be one of {', '.join(known)}")
    if double and bootstrap != "greedy":
        raise ValueError(f"double=True: must be False with bootstrap={bootstrap!r}")
    head = LOSSES[loss].head
    if bootstrap in ("soft", "munchausen") and head == "categorical":
        raise ValueError(f"bootstrap={bootstrap!r}: must be greedy with loss={loss!r}")
    if bootstrap == "none" and head != "linear":
        raise ValueError(f"bootstrap='none': must be another with loss={loss!r}")
    if bootstrap == "none" and polyak:
        raise ValueError("polyak=True: must be False with bootstrap='none'")
    if sequences is not None and bootstrap != "greedy":
        raise ValueError(f"bootstrap={bootstrap!r}: must be greedy with sequences")
    if rescale and sequences is None:
        raise ValueError("rescale=True: must be False without sequences")
    if sequences is None:
        loss_and_info = make_transition_loss(network, double=double, loss=loss, bootstrap=bootstrap)
    else:
        loss_and_info = make_sequence_loss(
            network, LOSSES[loss].load(), double=double, sequences=sequences, rescale=rescale
        )

    def init(key: Array, obs: Array, *, hyper: Hyper) -> AgentState:
        params = network.init(key, obs)
        return AgentState(
            params=params,
            # A copy, so that donating the state donates each buffer once.
            target_params=() if bootstrap == "none" else jax.tree.map(jnp.copy, params),
            opt_state=optimizer(hyper).init(params),
            since_target=jnp.int32(0),
        )

    def act(
        key: Array,
        params: Params,
        carry: PyTree,
        obs: Array,
        first: Array,
        explore: Exploration | None,
    ) -> tuple[Array, PyTree, ActInfo]:
        if explore is None:
            output, carry = network.apply(params, None, carry, obs, first)
            actions = jnp.argmax(output.q_values, axis=-1).astype(jnp.int32)
            return actions, carry, ActInfo(output.q_values, jnp.ones(actions.shape))
        key_network, key_action, key_repeat = jax.random.split(key, 3)
        apply = _apply_each if network.noisy else network.apply
        output, carry = apply(params, key_network, carry, obs, first)
        actions, prob = select_actions(exploration, key_action, output.q_values, explore)
        if not isinstance(explore.repeat, tuple):
            actions, prob = repeat_actions(key_repeat, output.q_values, actions, explore)
        return actions, carry, ActInfo(q=output.q_values, behaviour_prob=prob)

    def _apply_each(
        params: Params, key: Array, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        """Apply the network to each environment with noise of its own."""

        def apply(key: Array, *inputs: Any) -> Any:
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], inputs)
            outputs = network.apply(params, key, *batch_of_one)
            return jax.tree.map(lambda leaf: leaf[0], outputs)

        return jax.vmap(apply)(jax.random.split(key, obs.shape[0]), carry, obs, first)

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
        if bootstrap == "none":
            target, since = (), None
        elif polyak:
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
