"""Initial priorities from the estimates of actors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.actor_learner.actor import learner_of_actor, make_actor
from jaxdqn.actor_learner.group_learner import environment_of, make_group_learner
from jaxdqn.actor_learner.initial_priorities import (
    Estimates,
    behaviour_prob_of,
    example_extras,
    initial_priorities_of,
)
from jaxdqn.actor_learner.shard import make_shard
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config, replace
from jaxdqn.types import Row, make_counter

CONFIG = Config(
    replay="prioritized",
    num_envs=2,
    rollout_length=2,
    batch_size=4,
    replay_capacity=32,
    warmup_rows=16,
    n_step=2,
    gamma=0.5,
    priority_exponent=1.0,
    hidden_sizes=(8,),
)


def test_priorities_are_n_step_errors_of_the_estimates() -> None:
    shard = make_shard(CONFIG, num_envs=1, rings=1, initial="actor")
    # One episode of seven rows, which terminates with the action of row 5; row 6 is its end.
    reward = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 7.0])
    terminated, first = np.zeros(8, bool), np.zeros(8, bool)
    terminated[5], first[[0, 7]] = True, True
    taken, greatest = np.arange(8.0), 10 * np.arange(8.0)

    def block(part: slice) -> Row:
        leaves = [
            np.zeros((8, 4)),
            first,
            np.zeros(8, np.int32),
            reward,
            terminated,
            np.zeros(8, bool),
        ]
        obs, *others = (
            jnp.asarray(leaf[part]).reshape(-1, 2, 1, *leaf.shape[1:]) for leaf in leaves
        )
        of_actor = [
            jnp.asarray(leaf[part], jnp.float32).reshape(-1, 2, 1) for leaf in (taken, greatest)
        ]
        return Row(obs, *others, Estimates(*of_actor))

    example = jax.tree.map(lambda leaf: leaf[0, 0, 0], block(slice(0, 2)))
    (ring,) = shard.init(example)
    add = jax.jit(shard.add)
    ring = add(ring, block(slice(0, 4)))
    # |r + 0.5 r' + 0.25 max Q'' - Q|: rows 0 and 1 have two successors.
    expected = [1 + 1 + 5 - 0, 2 + 1.5 + 7.5 - 1]
    np.testing.assert_allclose(ring.tree.levels[0].ravel()[:4], [*expected, 0, 0], rtol=1e-5)
    # Learning changes the priority of row 0; the rows of later blocks leave it as it is.
    drawn = shard.sample(jax.random.key(0)[None], (ring,), jnp.float32(0.5))
    (ring,) = shard.update((ring,), drawn, jnp.full((1, 4), 0.125))
    ring = add(ring, block(slice(4, 8)))
    # Rows 4 and 5 end in a terminal state; row 6 holds no action.
    after = [3 + 2 + 10 - 2, 4 + 2.5 + 12.5 - 3, 5 + 3 - 4, 6 - 5, 0, 0]
    leaves = np.asarray(ring.tree.levels[0]).ravel()[:8]
    np.testing.assert_allclose(leaves[2:8], after, rtol=1e-5)
    np.testing.assert_allclose(leaves[:2], 0.125, rtol=1e-5)


@pytest.mark.slow
def test_actors_send_the_values_of_their_parameters() -> None:
    actor = make_actor(CONFIG, actors=1, index=0, iterations=2, initial="actor")
    learner = make_group_learner(CONFIG)
    state = jax.jit(learner.init)(jax.random.key(0), None)
    stream = jax.jit(actor.start)(jax.random.key(0))
    _, (rows, _) = jax.jit(actor.block)(stream, state.agent.params, state.hyper, make_counter(99))
    zeros = example_extras(CONFIG, "actor")
    assert jax.tree.structure(rows.extras) == jax.tree.structure(zeros)
    assert rows.extras.taken.shape == rows.action.shape == (2, 2, 2)
    taken, greatest, _ = rows.extras
    agent, _ = learner_of_actor(CONFIG, environment_of(CONFIG).spec, identity_collectives, "max")
    obs, first = rows.obs.reshape(8, 4), rows.first.ravel()
    q = agent.act(jax.random.key(1), state.agent.params, (), obs, first, None)[2].q
    np.testing.assert_allclose(greatest.ravel(), jnp.max(q, axis=1), rtol=1e-5)
    chosen = jnp.take_along_axis(q, rows.action.reshape(8, 1), axis=1)[:, 0]
    np.testing.assert_allclose(taken.ravel(), chosen, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("initial", ["actor", "max"])
def test_rows_with_importance_ratios_have_the_probabilities_of_their_actions(initial) -> None:
    config = replace(CONFIG, importance_ratios=True, epsilon_end=0.25, epsilon_decay_rows=1)
    actor = make_actor(config, actors=1, index=0, iterations=8, initial=initial)
    state = jax.jit(make_group_learner(config).init)(jax.random.key(0), None)
    stream = jax.jit(actor.start)(jax.random.key(0))
    _, (rows, _) = jax.jit(actor.block)(stream, state.agent.params, state.hyper, make_counter(99))
    zeros = example_extras(config, initial)
    assert jax.tree.structure(rows.extras) == jax.tree.structure(zeros)
    probabilities = behaviour_prob_of(rows.extras)
    np.testing.assert_allclose(np.unique(probabilities.round(6)), [0.125, 0.875])
    shard = make_shard(config, num_envs=2, rings=1, initial=initial)
    example = rows._replace(extras=zeros)
    example = jax.tree.map(lambda leaf: leaf[0, 0, 0], example._replace(extras=()))
    (ring,) = shard.init(example._replace(extras=zeros))
    ring = jax.jit(shard.add)(ring, rows)
    draws = jax.jit(shard.sample)(jax.random.key(0)[None], (ring,), jnp.float32(0.5))
    path = jax.tree.map(lambda leaf: np.asarray(leaf[0]), draws.batches.path)
    # The flat index of a row is that of its slot and environment.
    after = np.asarray(draws.info.indices[0])[:, None] % 32 + 2 * np.arange(1, 3)
    flat = np.asarray(probabilities).reshape(-1)
    np.testing.assert_array_equal(path.behaviour_prob_t, flat[after])


def test_a_distributional_loss_takes_the_maximum() -> None:
    categorical = replace(CONFIG, loss="categorical", value_min=0.0, value_max=10.0)
    assert initial_priorities_of(categorical, None) == "max"
    assert initial_priorities_of(CONFIG, None) == "actor"
    with pytest.raises(ValueError, match="initial_priorities='actor': must be 'max' with loss="):
        initial_priorities_of(categorical, "actor")
