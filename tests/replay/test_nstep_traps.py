"""Hand-worked transitions for the known mistakes of n-step replays.

Every test checks both the replay and its slow twin against the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay import make_uniform
from jaxdqn.types import Batch, Row
from tests.oracles import INVALID_REWARD, TransitionOracle, stack_trees
from tests.toys import quick_jit

CAPACITY = 8

Transitions = Callable[..., dict[int, Batch]]


def stream(
    rewards: list[float],
    *,
    first: tuple[int, ...] = (0,),
    terminated: tuple[int, ...] = (),
    truncated: tuple[int, ...] = (),
) -> list[Row]:
    """Return rows [E=1] of one stream.

    Row t has observation t + 1 and action t. The tuples hold the times of flags.
    """
    return [
        Row(
            obs=np.array([[time + 1]], np.float32),
            first=np.array([time in first]),
            action=np.array([time], np.int32),
            reward=np.array([reward], np.float32),
            terminated=np.array([time in terminated]),
            truncated=np.array([time in truncated]),
        )
        for time, reward in enumerate(rewards)
    ]


@functools.cache
def built(n_step: int, frame_stack: int) -> tuple[Any, Any, Any]:
    replay = make_uniform(
        num_envs=1,
        rows_per_env=CAPACITY,
        rows_per_add=1,
        batch_size=128,
        n_step=n_step,
        frame_stack=frame_stack,
    )
    return replay.init, quick_jit(replay.add), quick_jit(replay.sample)


def from_replay(
    rows: list[Row], *, n_step: int = 3, gamma: float = 0.9, frame_stack: int = 1
) -> dict[int, Batch]:
    """Return the transition of every start in a large batch, by its time."""
    init, add, sample = built(n_step, frame_stack)
    state = init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    for row in rows:
        state = add(state, stack_trees([row]))
    batch, _ = sample(jax.random.key(1), state, jnp.float32(gamma))
    batch = jax.tree.map(np.asarray, batch)
    return {
        int(time): jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        for index, time in enumerate(batch.a_tm1)
    }


def from_twin(
    rows: list[Row], *, n_step: int = 3, gamma: float = 0.9, frame_stack: int = 1
) -> dict[int, Batch]:
    oracle = TransitionOracle(
        num_envs=1, rows_per_env=CAPACITY, n_step=n_step, frame_stack=frame_stack
    )
    oracle.add(rows)
    return {
        time: oracle.transition(time, env, gamma) for time, env in oracle.valid_starts().values()
    }


@pytest.fixture(params=[from_replay, from_twin], ids=["replay", "twin"])
def transitions(request: pytest.FixtureRequest) -> Transitions:
    return request.param


def assert_transition(batch: Batch, *, reward: float, discount: float, bootstrap_time: int) -> None:
    np.testing.assert_allclose(batch.r_t, reward, rtol=1e-6)
    np.testing.assert_allclose(batch.discount_t, discount, rtol=1e-6)
    np.testing.assert_array_equal(batch.obs_t, [bootstrap_time + 1])


def test_three_steps_bootstrap_with_gamma_cubed(transitions: Transitions) -> None:
    got = transitions(stream([1, 2, 3, 4, 5, 6]))
    assert sorted(got) == [0, 1, 2]
    assert_transition(got[0], reward=1 + 0.9 * 2 + 0.81 * 3, discount=0.729, bootstrap_time=3)
    assert_transition(got[2], reward=3 + 0.9 * 4 + 0.81 * 5, discount=0.729, bootstrap_time=5)


def test_gamma_is_an_input_of_the_compiled_program(transitions: Transitions) -> None:
    rows = stream([1, 2, 3, 4])
    assert_transition(
        transitions(rows, gamma=0.5)[0], reward=2.75, discount=0.125, bootstrap_time=3
    )
    assert_transition(transitions(rows, gamma=1.0)[0], reward=6, discount=1, bootstrap_time=3)
    assert_transition(transitions(rows, gamma=0.0)[0], reward=1, discount=0, bootstrap_time=3)


def test_one_step_is_the_plain_transition(transitions: Transitions) -> None:
    got = transitions(stream([1, 2, 3, 4]), n_step=1)
    assert sorted(got) == [0, 1, 2]
    assert_transition(got[1], reward=2, discount=0.9, bootstrap_time=2)


@pytest.mark.parametrize("truncated", [(1,), ()], ids=["time_limit", "broken_without_a_flag"])
def test_a_cut_stream_bootstraps_from_its_last_observation(
    transitions: Transitions, truncated: tuple[int, ...]
) -> None:
    # Row 2 holds the final observation, row 3 the reset: a bootstrap from time 3 is the mistake.
    rows = stream([1, 2, INVALID_REWARD, 4, 5, 6, 7], first=(0, 3), truncated=truncated)
    three, one = transitions(rows), transitions(rows, n_step=1)
    assert sorted(three) == [0, 1, 3]
    assert sorted(one) == [0, 1, 3, 4, 5]
    assert_transition(three[0], reward=1 + 0.9 * 2, discount=0.81, bootstrap_time=2)
    assert_transition(three[1], reward=2, discount=0.9, bootstrap_time=2)
    assert_transition(one[1], reward=2, discount=0.9, bootstrap_time=2)


def test_a_terminal_state_cuts_the_bootstrap(transitions: Transitions) -> None:
    rows = stream([1, 2, INVALID_REWARD, 4, 5, 6, 7], first=(0, 3), terminated=(1,))
    three, one = transitions(rows), transitions(rows, n_step=1)
    assert sorted(three) == [0, 1, 3]
    assert_transition(three[0], reward=1 + 0.9 * 2, discount=0, bootstrap_time=2)
    assert_transition(three[1], reward=2, discount=0, bootstrap_time=2)
    assert_transition(one[0], reward=1, discount=0.9, bootstrap_time=1)
    assert_transition(one[1], reward=2, discount=0, bootstrap_time=2)


def test_a_termination_on_the_last_of_the_n_steps_cuts_the_bootstrap(
    transitions: Transitions,
) -> None:
    got = transitions(stream([1, 2, 3, INVALID_REWARD, 5], first=(0, 4), terminated=(2,)))
    assert_transition(got[0], reward=1 + 0.9 * 2 + 0.81 * 3, discount=0, bootstrap_time=3)


def test_a_termination_just_after_the_n_steps_does_not(transitions: Transitions) -> None:
    got = transitions(stream([1, 2, 3, 4, INVALID_REWARD], first=(0, 5), terminated=(3,)))
    assert_transition(got[0], reward=1 + 0.9 * 2 + 0.81 * 3, discount=0.729, bootstrap_time=3)


def test_a_lost_life_cuts_the_return_and_the_episode_continues(transitions: Transitions) -> None:
    got = transitions(stream([1, 2, 3, 4, 5, 6], terminated=(1,)))
    assert sorted(got) == [0, 1, 2]
    assert_transition(got[0], reward=1 + 0.9 * 2, discount=0, bootstrap_time=2)
    assert_transition(got[2], reward=3 + 0.9 * 4 + 0.81 * 5, discount=0.729, bootstrap_time=5)


def test_the_truncated_flag_alone_changes_nothing(transitions: Transitions) -> None:
    got = transitions(stream([1, 2, 3, 4], truncated=(0, 1, 2, 3)))
    assert_transition(got[0], reward=1 + 0.9 * 2 + 0.81 * 3, discount=0.729, bootstrap_time=3)


def test_flags_of_an_invalid_row_are_not_read(transitions: Transitions) -> None:
    rows = stream([1, 2, INVALID_REWARD, 4, 5, 6], first=(0, 3), terminated=(2,), truncated=(1, 2))
    assert_transition(transitions(rows)[0], reward=2.8, discount=0.81, bootstrap_time=2)


def test_an_episode_of_one_row_has_no_valid_start_and_one_of_one_step_has_one(
    transitions: Transitions,
) -> None:
    # Row 0 is a broken episode, rows 1 and 2 are an episode of one step, row 3 opens the next.
    rows = stream([INVALID_REWARD, 2, INVALID_REWARD, 4, 5, 6, 7], first=(0, 1, 3), terminated=(1,))
    got = transitions(rows)
    assert sorted(got) == [1, 3]
    assert_transition(got[1], reward=2, discount=0, bootstrap_time=2)


def test_frames_before_the_episode_are_zero_in_a_stack(transitions: Transitions) -> None:
    rows = stream([0, 0, 0, 0, 0, 0, 0], first=(0, 4))
    got = transitions(rows, n_step=1, frame_stack=3)
    assert sorted(got) == [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(got[0].obs_tm1, [[0, 0, 1]])
    np.testing.assert_array_equal(got[0].obs_t, [[0, 1, 2]])
    np.testing.assert_array_equal(got[2].obs_tm1, [[1, 2, 3]])
    np.testing.assert_array_equal(got[2].obs_t, [[2, 3, 4]])
    np.testing.assert_array_equal(got[4].obs_tm1, [[0, 0, 5]])
    np.testing.assert_array_equal(got[5].obs_t, [[5, 6, 7]])


def test_a_lost_life_does_not_clear_the_stack(transitions: Transitions) -> None:
    got = transitions(stream([0] * 5, terminated=(1,)), n_step=1, frame_stack=3)
    np.testing.assert_array_equal(got[2].obs_tm1, [[1, 2, 3]])


def test_stack_of_the_very_first_row_is_zero_padded_when_the_ring_is_exactly_full(
    transitions: Transitions,
) -> None:
    # No row opens an episode, so only the start of the stream bounds the stack. The slot before
    # row 0 already holds the newest row.
    got = transitions(stream([0] * CAPACITY, first=()), n_step=1, frame_stack=3)
    assert sorted(got) == list(range(CAPACITY - 1))
    np.testing.assert_array_equal(got[0].obs_tm1, [[0, 0, 1]])
    np.testing.assert_array_equal(got[1].obs_tm1, [[0, 1, 2]])


def test_the_oldest_rows_are_only_context_once_rows_are_evicted(
    transitions: Transitions,
) -> None:
    got = transitions(stream([0] * (CAPACITY + 1)), n_step=1, frame_stack=3)
    assert sorted(got) == [3, 4, 5, 6, 7]
    np.testing.assert_array_equal(got[3].obs_tm1, [[2, 3, 4]])
