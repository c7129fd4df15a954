"""Acting: exploration of each environment, and stacked frames."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.training.dqn import make_replay
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Network, QOutput
from tests.toys import cycle, noisy, rows_of, tiny, watched_run


def frozen(q_of_obs):
    """Return a network of fixed values, whose only parameter gets no gradient."""

    def apply(params, key, carry, obs, first):
        return QOutput(q_values=q_of_obs(obs) + 0.0 * params["nothing"]), carry

    return Network(
        init=lambda key, obs: {"nothing": jnp.zeros((1, 1))},
        apply=apply,
        initial_carry=lambda batch_size: (),
    )


def test_warm_up_is_random_and_a_ladder_gives_each_environment_its_own_epsilon():
    config = tiny(
        warmup_rows=1600,
        rollout_length=8,
        replay_capacity=8192,
        total_rows=10_000,
        epsilon_schedule="constant",
        epsilon_end=0.4,
        epsilon_ladder=7.0,
    )
    prefers_0 = frozen(lambda obs: jnp.broadcast_to(jnp.asarray([1.0, 0.0]), (obs.shape[0], 2)))
    trainer = make_trainer(config, environment=cycle((1.0,), limit=9), network=prefers_0)
    _, end, metrics, _ = watched_run(trainer, 100)
    ladder = 0.4 ** (1 + 7 * np.arange(4) / 3)
    np.testing.assert_allclose(metrics.epsilon, ladder.mean(), rtol=1e-5)
    action = rows_of(end)[2]
    assert action.shape == (1200, 4)
    # 400 coins in the warm-up: 200 +- 10. Then 800, and half of the random actions are 0.
    assert (np.abs(action[:400].sum(axis=0) - 200) < 45).all()
    expected = 800 * ladder / 2  # 160, 18.9, 2.2, 0.26
    others = action[400:].sum(axis=0)
    assert (np.abs(others - expected) < 4.5 * np.sqrt(expected) + 1).all(), others


def test_acting_sees_the_same_stacks_as_the_replay_gathers():
    """The action is a hash of the stack, so a different stack gives a different action."""
    frames, num_actions = 3, 16
    multipliers = jnp.asarray([[1.0, 3.0], [5.0, 7.0], [11.0, 13.0]])  # [S, O]

    def hash_of(stack):  # [B, O, S] -> [B]
        mixed = jnp.einsum("bos,so->b", stack, multipliers)
        return mixed.astype(jnp.int32) % num_actions

    config = tiny(
        frame_stack=frames,
        n_step=2,
        rollout_length=2,
        replay_capacity=128,
        batch_size=32,
        epsilon_schedule="constant",
        epsilon_end=0.0,
    )
    network = frozen(lambda stack: jax.nn.one_hot(hash_of(stack), num_actions))
    trainer = make_trainer(config, environment=noisy(num_actions=num_actions), network=network)
    # Enough iterations to overwrite every row of the warm-up.
    _, end, _, _ = watched_run(trainer, 30)
    assert int(end.replay.size) == 32
    sample = make_replay(dataclasses.replace(config, batch_size=32)).sample
    keys = jax.random.split(jax.random.key(5), 20)
    batch, _ = jax.jit(jax.vmap(sample, (0, None, None)))(keys, end.replay, jnp.float32(0.9))
    stacks = batch.obs_tm1.reshape(-1, 2, frames)
    np.testing.assert_array_equal(hash_of(stacks), batch.a_tm1.ravel())
    padded = np.sum(np.all(np.asarray(stacks) == 0, axis=1), axis=1)
    assert set(padded) == {0, 1, 2}  # some stacks are from the start of an episode
    wrong = np.asarray(hash_of(stacks[:, :, ::-1])) == batch.a_tm1.ravel()
    assert wrong.mean() < 0.5  # the hash distinguishes stacks
