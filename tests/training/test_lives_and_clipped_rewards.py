"""Learning from clipped rewards and lost lives, with the true scores in every record."""

import jax
import numpy as np
import pytest

from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.monitoring.records import evaluation_record
from jaxdqn.replay import make_uniform
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_evaluation import make_vector_evaluator
from jaxdqn.training.vector_programs import jit_vector_programs
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import make_single_trainer, make_vector_trainer
from tests.toys import QUICK, cycle, quick_jit, rows_of, tiny
from tests.training.test_vector_trainer import OnHost, on_host

RANDOM = {"epsilon_schedule": "constant", "epsilon_end": 1.0}
CYCLE = cycle([3.0, 0.5, -4.0, 0.0], limit=7)


@pytest.mark.slow
def test_learning_sees_clipped_rewards_and_the_metrics_the_true_ones():
    ends = {}
    for clip in (False, True):
        trainer = make_trainer(tiny(clip_rewards=clip, **RANDOM), environment=CYCLE)
        state = quick_jit(trainer.init)(jax.random.key(0))
        ends[clip] = quick_jit(trainer.chunk(16))(state)
    (plain, metrics), (clipped, metrics_of_clipped) = ends[False], ends[True]
    rewards, learned = rows_of(plain)[3], rows_of(clipped)[3]
    assert rewards.max() == 3
    assert rewards.min() == -5
    np.testing.assert_array_equal(learned, np.clip(rewards, -1, 1))
    assert metrics_of_clipped.episodes == metrics.episodes == 8
    np.testing.assert_array_equal(metrics_of_clipped.return_sum, metrics.return_sum)
    np.testing.assert_array_equal(
        clipped.actor.episode.episode_return, plain.actor.episode.episode_return
    )
    assert metrics_of_clipped.loss < metrics.loss


class LosingLives(OnHost):
    """Terminate in state 2 and continue, as a game does at the loss of a life."""

    def step(self, actions):
        timestep = super().step(actions)
        lost = np.asarray(timestep.obs)[:, 2] > 0
        return timestep._replace(
            terminated=timestep.terminated | lost, truncated=timestep.truncated & ~lost
        )


def losing_lives():
    spec = CYCLE.spec._replace(terminates_within_episodes=True)
    return HostEnvironment(
        spec,
        lambda num_envs: LosingLives(CYCLE, num_envs),
        make_to_evaluate=on_host(CYCLE).make,
    )


@pytest.fixture(scope="module")
def played():
    """Return the state and metrics after the same games, with and without lives."""
    found = []
    for environment in (on_host(CYCLE), losing_lives()):
        trainer = make_vector_trainer(tiny(**RANDOM), environment)
        runner = VectorRunner(trainer, jit_vector_programs(trainer, QUICK))
        state, (metrics, _) = runner.chunk(runner.init(jax.random.key(0), None), 16)
        runner.close()
        found.append((state, metrics))
    return found


def test_an_episode_with_lost_lives_counts_once_with_its_complete_return(played):
    (_, whole), (_, lives) = played
    assert whole.episodes == lives.episodes == 8
    assert whole.return_sum == lives.return_sum
    assert whole.length_sum == lives.length_sum == 8 * 7


def test_a_lost_life_cuts_the_bootstrap_and_its_successor_starts_transitions(played):
    state = played[1][0]
    first = rows_of(state)[0]
    terminated = np.asarray(state.replay.ring.rows.flags & 2 > 0)[: len(first)]
    # Of the eight rows of an episode, the second and the sixth arrive in state 2.
    rows = np.arange(len(first)) % 8
    np.testing.assert_array_equal(terminated[:, 0], (rows == 1) | (rows == 5))
    np.testing.assert_array_equal(first[:, 0], rows == 0)
    replay = make_uniform(num_envs=4, rows_per_env=64, rows_per_add=1, batch_size=256)
    starts, _ = quick_jit(replay.sample)(jax.random.key(1), state.replay, 0.99)
    places = np.argmax(starts.obs_tm1, axis=-1)
    # Every state starts transitions; those that arrive in state 2 are not bootstrapped.
    assert set(places.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(starts.discount_t == 0, places == 1)


def test_evaluations_use_the_environments_that_are_made_for_them():
    environment = losing_lives()
    trainer = make_single_trainer(tiny(), environment=environment)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.agent.params)
    evaluate = make_vector_evaluator(trainer.agent, environment, 3)
    np.testing.assert_array_equal(evaluate(params, jax.random.key(0)).lengths, 7)


@pytest.mark.parametrize(("limit", "terminal_at", "share"), [(7, None, 0), (7, 2, 1), (1, 2, 0)])
def test_evaluations_on_device_and_host_tell_terminations_from_time_limits(
    limit, terminal_at, share
):
    environment = cycle([1.0, 0.5, 2.0, 0.0], limit=limit, terminal_at=terminal_at)
    agent = make_trainer(tiny(), environment=environment).agent
    hyper, obs = hyper_from(tiny()), np.zeros((1, 4), np.float32)
    params = quick_jit(agent.init)(jax.random.key(0), obs, hyper=hyper).params
    on_device = quick_jit(make_evaluator(agent, environment, 3))(params, jax.random.key(0))
    host = make_vector_evaluator(agent, on_host(environment), 3)(params, jax.random.key(0))
    for info in (on_device, host):
        record = evaluation_record(info)
        assert record["terminated_share"] == share
        np.testing.assert_array_equal(info.lengths, terminal_at if share else limit)
