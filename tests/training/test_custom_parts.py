"""Custom replay, exploration, agent and learning of a trainer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.exploration import select_actions
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.communication.collectives import device_collectives
from jaxdqn.config.config import Config
from jaxdqn.networks import make_network
from jaxdqn.parallel import population
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_hypers, learner_keys
from jaxdqn.replay import make_uniform
from jaxdqn.training.algorithms import CustomParts, make_learning
from jaxdqn.training.trainer import make_trainer, train
from jaxdqn.types import Batch, Exploration, Replay, SampleInfo
from tests.toys import assert_identical, bitwise_jit, noisy, quick_jit, tiny, watched_run

CONFIG = tiny()
ENVIRONMENT = noisy()


def uniform(config):
    """Make the replay that the configuration would have."""
    return make_uniform(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device,
    )


def epsilon_greedy(key, q, exploration):
    return select_actions("epsilon_greedy", key, q, exploration)


def agent_as_configured(config, spec, collectives):
    return make_agent(
        make_network(config, spec),
        make_optimizer(config, collectives),
        loss=config.loss,
        target_period=config.target_period,
    )


SAME = {
    "replay": uniform,
    "explore": epsilon_greedy,
    "agent": agent_as_configured,
    "learning": make_learning,
}
"""Custom parts that equal those of the configuration."""


@pytest.fixture(scope="module")
def configured():
    return watched_run(make_trainer(CONFIG, environment=ENVIRONMENT), 3)


@pytest.mark.parametrize("name", SAME)
def test_a_custom_part_that_equals_the_configured_one_trains_bitwise_the_same(name, configured):
    trainer = make_trainer(CONFIG, environment=ENVIRONMENT, **{name: SAME[name]})
    assert_identical(watched_run(trainer, 3)[:3], configured[:3])


def newest(config):
    """Make a replay that stores the newest rows only, and learns from each of them."""

    def init(row):
        shape = (config.rollout_length, config.envs_per_device)
        return jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), row)

    def sample(key, rows, gamma):
        size = config.batch_per_device
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
        flat = jax.tree.map(lambda leaf: jnp.resize(leaf, (size, *leaf.shape[1:])), flat)
        discount = jnp.zeros(size, jnp.float32)
        batch = Batch(flat.obs, flat.action, flat.reward, discount, flat.obs)
        return batch, SampleInfo(jnp.arange(size), jnp.ones(size))

    return Replay(init, lambda _, rows: rows, sample, lambda rows, *_: rows)


def test_a_custom_replay_is_stored_in_the_state_and_sampled():
    trainer = make_trainer(CONFIG, environment=ENVIRONMENT, replay=newest, loss=mean_reward)
    _, end, metrics, rewards = watched_run(trainer, 3, lambda state: state.replay.reward)
    assert end.replay.obs.shape == (1, 4, 2)
    np.testing.assert_allclose(metrics.extra["reward"], rewards.mean(axis=(1, 2)), rtol=1e-5)


def mean_reward(params, target_params, key, batch, hyper):
    return 0 * batch.r_t, {"reward": batch.r_t}


def test_a_custom_exploration_chooses_the_actions():
    def last_action(key, q, exploration):
        return jnp.full(q.shape[0], q.shape[1] - 1), jnp.ones(q.shape[0])

    trainer = make_trainer(CONFIG, environment=ENVIRONMENT, explore=last_action)
    _, _, _, actions = watched_run(trainer, 3, lambda state: state.actor.action)
    np.testing.assert_array_equal(actions, 1)
    # Evaluation is greedy.
    params = {"params": jax.tree.map(jnp.zeros_like, jax.eval_shape(
        trainer.init, jax.random.key(0)).agent.params["params"])}  # fmt: skip
    obs, first = jnp.ones((4, 2)), jnp.zeros(4, bool)
    act = trainer.agent.act
    exploration = Exploration(jnp.zeros(4), jnp.float32(1))
    assert (act(jax.random.key(0), params, (), obs, first, None)[0] == 0).all()
    assert (act(jax.random.key(0), params, (), obs, first, exploration)[0] == 1).all()


def test_a_custom_learning_owns_the_content_of_rows():
    def learning(config, agent, collectives):
        made = make_learning(config, agent, collectives)
        return made._replace(extras=lambda actor, info: info.behaviour_prob)

    trainer = make_trainer(CONFIG, environment=ENVIRONMENT, learning=learning)
    _, end, _, _ = watched_run(trainer, 3)
    stored = end.replay.storage.extras[: int(end.replay.size)]
    # Of two actions, nearly at random: epsilon has just begun to fall.
    assert 0.49 < stored.min() <= stored.max() < 0.51


@pytest.mark.parametrize(
    ("parts", "fields", "message"),
    [
        ({"replay": lambda config: 3}, {}, "replay: must return a Replay, not int"),
        ({"replay": 3}, {}, "replay=3: must be a function"),
        ({"learning": lambda *_: None}, {}, "learning: must return a Learning, not NoneType"),
        ({"agent": lambda *_: None}, {}, "agent: must return an Agent, not NoneType"),
        ({"replay": uniform, "learning": make_learning}, {}, "replay: must be left out with"),
        (
            {"replay": uniform},
            {"algorithm": "pqn", "minibatches": 4},
            "replay: must be left out with algorithm='pqn'",
        ),
        (
            {"agent": agent_as_configured, "explore": epsilon_greedy},
            {},
            "explore: must be left out",
        ),
        (
            {"explore": lambda key, q, _: (jnp.argmax(q, -1).astype(jnp.float32), q[:, 0])},
            {},
            "explore: must return actions of shape (4,) int32, not (4,) float32",
        ),
        (
            {"explore": lambda key, q, _: (jnp.argmax(q, -1).astype(jnp.int32), q)},
            {},
            "explore: must return prob of shape (4,) float32, not (4, 2)",
        ),
        ({"loss": lambda *_: 3}, {}, "loss: must return (losses, info), an array and a dict"),
    ],
)
def test_parts_that_do_not_fit_are_rejected_when_the_trainer_is_made(parts, fields, message):
    config = tiny(**fields) if not fields else Config(num_envs=4, total_rows=400, **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(config, environment=ENVIRONMENT, **parts)


def test_a_custom_agent_is_rejected_with_an_outer_optimiser():
    config = tiny(devices=2, average_every=4, target_period=4, outer_optimizer="nesterov")
    message = r"^outer_optimizer='nesterov': must be 'none' with a custom agent"
    with pytest.raises(ValueError, match=message):
        CustomParts(agent=agent_as_configured).check(config, None)


def test_an_agent_of_several_replicas_must_be_made_for_them():
    config = tiny(devices=2)
    agent = agent_as_configured(CONFIG, ENVIRONMENT.spec, device_collectives(1))
    with pytest.raises(ValueError, match=r"agent: must be a function .* over 2 replicas"):
        make_trainer(
            config, environment=ENVIRONMENT, agent=agent, collectives=device_collectives(2)
        )


@pytest.mark.slow
def test_a_chunk_runs_the_replaced_step():
    trainer = make_trainer(CONFIG, environment=ENVIRONMENT)
    start = quick_jit(trainer.init)(jax.random.key(0))
    end, metrics = bitwise_jit(trainer.chunk(3))(start)

    def step(state):
        state, metrics = trainer.step(state)
        return state, metrics._replace(epsilon=2 + metrics.epsilon)

    replaced = trainer._replace(step=step)
    state, reduced = bitwise_jit(replaced.chunk(3))(start)
    assert_identical(state, end)
    np.testing.assert_allclose(reduced.epsilon, 2 + metrics.epsilon, rtol=1e-6)
    assert (reduced.rows, reduced.lost) == (12, 0)
    with pytest.raises(ValueError, match="iterations=0: must be at least 1"):
        replaced.chunk(0)


def test_parts_that_a_trainer_is_bound_to_cannot_be_replaced_in_it():
    trainer = make_trainer(CONFIG, environment=ENVIRONMENT)
    other = make_trainer(CONFIG, environment=ENVIRONMENT)
    with pytest.raises(ValueError, match="agent: must be passed to make_trainer"):
        trainer._replace(agent=other.agent)
    with pytest.raises(ValueError, match="environment: must be passed to make_trainer"):
        trainer._replace(environment=noisy(limit=3))
    assert trainer._replace(agent=trainer.agent).agent is trainer.agent
    with pytest.raises(ValueError, match="step: must be replaced before the trainer is mapped"):
        population(trainer, 2)._replace(step=other.step)


@pytest.mark.slow
def test_train_takes_the_same_parts():
    parts = {"explore": epsilon_greedy, "optimizer": lambda hyper: optax.sgd(0.1)}
    config = tiny(total_rows=36, log_every=4)
    run = train(config, environment=ENVIRONMENT, **parts)
    state, _ = quick_jit(run)(jax.random.key(0))
    assert not jax.tree.leaves(state.agent.opt_state)


def scaled_reward(params, target_params, key, batch, hyper):
    return 0 * batch.r_t, {"scaled": hyper.extra["scale"] * jnp.ones(())}


@pytest.mark.slow
def test_a_population_sweeps_a_custom_scalar_that_the_loss_reads():
    config = tiny(extra_hyper=("scale=3",), sweep=("scale=1,2",))
    trainer = make_mapped_trainer(config, environment=ENVIRONMENT, loss=scaled_reward)
    keys, hypers = learner_keys(config).train, learner_hypers(config)
    state = quick_jit(trainer.init)(keys, hypers)
    _, metrics = quick_jit(trainer.chunk(2))(state)
    assert metrics.extra["scaled"].tolist() == [1, 2]
    one = make_trainer(tiny(extra_hyper=("scale=3",)), environment=ENVIRONMENT, loss=scaled_reward)
    _, _, metrics, _ = watched_run(one, 1)
    assert metrics.extra["scaled"] == 3
