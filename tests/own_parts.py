"""A module of a user's own parts, which tests write into a directory."""

SOURCE = '''
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxdqn
from jaxdqn.types import Network

CONSTANT = 3


def greedy(key, q, exploration):
    return jnp.argmax(q, axis=-1).astype(jnp.int32), jnp.ones(q.shape[0])


def greedy_by_factory():
    return greedy


def replay(config):
    return jaxdqn.make_uniform(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device,
    )


def reward_loss(params, target_params, key, batch, hyper):
    bias = params["params"]["own"]["bias"]
    return (bias[batch.a_tm1] - batch.r_t) ** 2, {"reward": batch.r_t}


def learning(config, agent, collectives):
    return jaxdqn.make_learning(config, agent, collectives)


def agent(config, spec, collectives):
    network = jaxdqn.make_network(config, spec, MODULE)
    return jaxdqn.make_agent(network, jaxdqn.make_optimizer(config, collectives))


def corridor():
    """Walk right to the end of six cells."""

    def show(cell):
        return (jnp.arange(6) == cell).astype(jnp.float32)

    def reset(key):
        return jnp.int32(0), show(jnp.int32(0))

    def step(key, cell, action):
        cell = jnp.clip(cell + 2 * action - 1, 0, 5)
        return cell, show(cell), jnp.where(cell == 5, 1.0, -0.01), cell == 5

    def render(cell):
        frame = np.full((20, 60, 3), 240, np.uint8)
        frame[5:15, int(cell) * 10 : int(cell) * 10 + 10] = (200, 30, 30)
        return frame

    return jaxdqn.make_environment(
        reset, step, name="corridor", num_actions=2, max_episode_steps=20, render=render
    )


class Linear(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2, name="own")(obs)


MODULE = Linear()


def sgd():
    return lambda hyper: optax.sgd(hyper.learning_rate)


def needs_argument(hyper):
    return optax.sgd(hyper.learning_rate)


def transformation():
    return optax.sgd(0.1)


def nothing():
    return None


class Nested:
    corridor = staticmethod(corridor)
'''
