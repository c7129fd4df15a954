"""PQN, the replay-free sibling (Gallici et al. 2024): learning from the rows just acted.

An iteration acts K steps in E environments, computes Q(lambda) targets for these rows once, and
takes ``epochs`` passes over them in ``minibatches``. There is no replay and no target network:
many environments and normalised layers stand in for both. Everything around it, the trainer
included, is that of DQN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import observed
from jaxdqn.losses import lambda_targets
from jaxdqn.training.learning import GradientStep, Learning, deciders_of, make_update
from jaxdqn.types import Agent, Array, Batch, LearnInfo, PyTree, Row, TrainState


def make_pqn(config: Config, agent: Agent, collectives: Collectives) -> Learning:
    """Make the learning of PQN.

    Rows have as ``extras`` [K, E] the greatest Q where the action was chosen. Rows that are
    void, since an episode's final observation stands there, count for nothing, and the
    others as much as if the void ones were not there.
    """
    update = make_update(config, agent, collectives)
    peers = deciders_of(config, collectives)
    steps, minibatches = config.gradient_steps_per_iteration, config.minibatches

    def prepare(keys: Array, state: TrainState, rows: Row) -> tuple[GradientStep, PyTree]:
        now = state.actor.timestep
        obs = observed(state.actor.frames, now.obs)
        # None for the exploration: the value has no noise.
        info = agent.act(keys[0], state.agent.params, state.actor.carry, obs, now.first, None)[2]
        void = jnp.concatenate([rows.first[1:], now.first[None]])
        targets = jax.vmap(lambda_targets, in_axes=(1, 1, 1, 1, None), out_axes=1)(
            rows.reward,
            jnp.where(rows.terminated, 0.0, state.hyper.gamma),
            jnp.concatenate([rows.extras, jnp.max(info.q, axis=-1)[None]]),
            void,
            state.hyper.trace_decay,
        )
        valid = (~void).astype(jnp.float32)
        weights = valid / jnp.maximum(peers.mean(jnp.mean(valid)), 1e-6)
        size = void.size
        flat = jax.tree.map(
            lambda leaf: leaf.reshape(size, *leaf.shape[2:]),
            (rows.obs, rows.action, targets, weights),
        )
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(
            keys[1 : 1 + config.epochs]
        )

        def gradient_step(
            state: TrainState, one: tuple[Array, Array]
        ) -> tuple[TrainState, tuple[LearnInfo, Array]]:
            key, indices = one
            obs, actions, target, weights = jax.tree.map(lambda leaf: leaf[indices], flat)
            nothing = jnp.zeros_like(target)
            batch = Batch(obs_tm1=obs, a_tm1=actions, r_t=target, discount_t=nothing, obs_t=())
            learner, info, skipped = update(key, state, batch, weights)
            info = info._replace(abs_td=jnp.float32(0))
            return state._replace(agent=learner), (info, skipped)

        each = (keys[1 + config.epochs :], orders.reshape(steps, size // minibatches))
        return gradient_step, each

    return Learning(
        init=lambda example_row: (),
        remember=lambda replay, rows: replay,
        num_keys=1 + config.epochs + steps,
        prepare=prepare,
    )
