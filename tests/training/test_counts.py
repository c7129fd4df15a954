"""Counts of a run: rows, steps, episodes, schedules and target updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import counter_int
from tests.toys import assert_identical, cycle, noisy, rows_of, tiny, watched_run

COUNTED = 24
CYCLE = (1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def counted():
    """Run with known counts: synchronous episodes of 3 steps and a reset in all environments.

    E = 4, K = 2, and M = 3 from the replay ratio; epsilon falls over 100 rows.
    """
    config = tiny(
        rollout_length=2,
        replay_ratio=3.0,
        warmup_rows=33,
        target_period=7,
        epsilon_start=0.9,
        epsilon_end=0.1,
        epsilon_decay_rows=100,
        learning_rate=0.01,
    )
    trainer = make_trainer(config, environment=cycle(CYCLE, limit=3))
    return config, *watched_run(trainer, COUNTED, lambda state: (state.agent, state.counters))


def test_warm_up_counts_its_rows_and_takes_no_gradient_steps(counted):
    _, start, _, _, _ = counted
    # 33 rows, rounded up to 5 iterations of 8 rows: 10 rows in each of 4 environments.
    assert counter_int(start.counters.rows) == 40
    assert counter_int(start.counters.env_steps) == 4 * 8  # rows 3 and 7 of the ten are resets
    assert counter_int(start.counters.gradient_steps) == 0
    assert int(start.replay.size) == 10
    assert_identical(start.agent.params, start.agent.target_params)


def test_counters_and_metrics_equal_a_hand_count_without_the_resets(counted):
    _, start, end, metrics, _ = counted
    # Of rows 0, 1, 2, 3 of a cycle the third ends an episode and the fourth resets.
    rows = np.arange(10, 10 + 2 * COUNTED).reshape(COUNTED, 2)
    np.testing.assert_array_equal(metrics.rows, 8)
    np.testing.assert_array_equal(metrics.gradient_steps, 3)
    np.testing.assert_array_equal(metrics.env_steps, 4 * np.sum(rows % 4 != 3, axis=1))
    np.testing.assert_array_equal(metrics.episodes, 4 * np.sum(rows % 4 == 2, axis=1))
    np.testing.assert_array_equal(metrics.length_sum, 3 * np.asarray(metrics.episodes))
    assert counter_int(end.counters.rows) == 40 + 8 * COUNTED
    steps = counter_int(start.counters.env_steps) + int(metrics.env_steps.sum())
    assert counter_int(end.counters.env_steps) == steps == (40 + 8 * COUNTED) * 3 // 4 + 2
    assert counter_int(end.counters.gradient_steps) == 3 * COUNTED
    for name in ("rows", "env_steps", "gradient_steps", "episodes"):
        assert getattr(metrics, name).dtype == jnp.int32


def test_returns_are_of_complete_episodes_for_any_actions(counted):
    _, _, end, metrics, _ = counted
    first, ends, action, reward, _ = rows_of(end)
    paid = np.asarray([*CYCLE, 0.0])[np.arange(len(first)) % 4]
    # Action 1 pays one less; the reset row (the fourth) pays nothing.
    resets = (np.arange(len(first)) % 4 == 3)[:, None]
    np.testing.assert_array_equal(reward, np.where(resets, 0, paid[:, None] - action))
    assert ends.sum() == 4 * sum(row % 4 == 2 for row in range(len(first)))
    starts = [row for row in range(0, len(first) - 2, 4) if row + 2 >= 10]
    total = sum(reward[row : row + 3].sum() for row in starts)
    np.testing.assert_allclose(metrics.return_sum.sum(), total, rtol=1e-6)


def test_the_rows_of_all_iterations_form_one_continuous_stream(counted):
    _, _, end, _, _ = counted
    first, _, _, _, obs = rows_of(end)
    time = np.arange(len(first))
    np.testing.assert_array_equal(first, np.broadcast_to((time % 4 == 0)[:, None], first.shape))
    # States 0, 1, 2, and 0 again: the final observation, after the third step.
    position = np.asarray([0, 1, 2, 0])[time % 4]
    np.testing.assert_array_equal(obs, np.broadcast_to(np.eye(3)[position][:, None], obs.shape))


def test_epsilon_follows_its_schedule_in_rows_after_the_warm_up(counted):
    _, _, _, metrics, _ = counted
    # The vector steps of an iteration are 4 rows apart, the iterations 8.
    rows = 8 * np.arange(COUNTED)[:, None] + [0, 4]
    expected = 0.9 - 0.8 * np.minimum(rows / 100, 1)
    np.testing.assert_allclose(metrics.epsilon, expected.mean(axis=1), rtol=1e-5)


def test_a_replay_ratio_sets_the_gradient_steps_of_an_iteration(counted):
    config, _, end, _, (agent, counters) = counted
    assert config.gradient_steps_per_iteration == 3
    np.testing.assert_array_equal(counters.gradient_steps.low, 3 * np.arange(1, COUNTED + 1))
    learned = counter_int(end.counters.gradient_steps) * config.batch_size
    assert learned / (counter_int(end.counters.rows) - 40) == config.replay_ratio
    assert agent.since_target.shape == (COUNTED,)


def test_the_target_is_replaced_on_time_if_the_period_is_not_a_multiple_of_m(counted):
    _, start, _, _, (agent, _) = counted

    def flat(tree, length):
        leaves = [np.asarray(leaf).reshape(length, -1) for leaf in jax.tree.leaves(tree)]
        return np.concatenate(leaves, axis=1)

    online, target = flat(agent.params, COUNTED), flat(agent.target_params, COUNTED)
    before, replacements = flat(start.agent.params, 1)[0], 0
    for iteration in range(COUNTED):
        steps = 3 * (iteration + 1)
        assert int(agent.since_target[iteration]) == steps % 7
        if steps // 7 > (steps - 3) // 7:
            replacements += 1
            assert np.abs(target[iteration] - before).max() > 0
            replaced_last = steps % 7 == 0
            assert np.array_equal(target[iteration], online[iteration]) == replaced_last
        else:
            np.testing.assert_array_equal(target[iteration], before)
        before = target[iteration]
    assert replacements == 3 * COUNTED // 7 == 10


def test_reported_returns_and_lengths_equal_those_of_a_slow_recount():
    config = tiny(replay_capacity=2048, rollout_length=2)
    trainer = make_trainer(config, environment=noisy())
    _, end, metrics, _ = watched_run(trainer, 200)
    first, ends, _, reward, _ = rows_of(end)
    warmup = config.warmup_rows // config.num_envs
    returns, lengths, resets = [], [], 0
    for env in range(config.num_envs):
        total, length = 0.0, 0
        for time in range(len(first)):
            following = end.actor.timestep.first if time + 1 == len(first) else first[time + 1]
            if following[env]:
                assert reward[time, env] == 0
                resets += time >= warmup
                continue
            total, length = total + float(reward[time, env]), length + 1
            if ends[time, env]:
                if time >= warmup:  # the metrics of the warm-up are not reported
                    returns.append(total)
                    lengths.append(length)
                total, length = 0.0, 0
        np.testing.assert_allclose(end.actor.episode.episode_return[env], total, atol=1e-5)
        assert int(end.actor.episode.episode_length[env]) == length
    assert len(set(lengths)) == 6
    assert int(metrics.episodes.sum()) == len(returns)
    assert float(metrics.length_sum.sum()) == sum(lengths)
    np.testing.assert_allclose(metrics.return_sum.sum(), sum(returns), rtol=1e-4)
    assert int(metrics.env_steps.sum()) == int(metrics.rows.sum()) - resets
