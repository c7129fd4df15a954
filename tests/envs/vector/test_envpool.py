"""Environments of EnvPool: the rows of CartPole stepped by hand, and failures."""

import gymnasium
import numpy as np
import pytest

from jaxdqn.envs.vector import host_environment

pytest.importorskip("envpool")


def test_rows_obey_the_equations_of_cartpole_across_terminations_and_time_limits():
    host = host_environment("envpool:CartPole-v1", {"max_episode_steps": 14})
    assert (host.spec.num_actions, host.spec.max_episode_steps) == (2, 14)
    vector, plain = host.make(4), gymnasium.make("CartPole-v1").unwrapped
    before, lengths = vector.reset(3), np.zeros(4, int)
    assert before.first.all()
    assert (np.abs(before.obs) < 0.05).all()
    terminations = truncations = 0
    for step in range(80):
        # The first two push one way and fall; the others alternate and reach the limit.
        actions = np.array([1, 0, step % 2, step % 2], np.int32)
        now = vector.step(actions)
        ended = before.terminated | before.truncated
        np.testing.assert_array_equal(now.first, ended)
        lengths = np.where(now.first, 0, lengths + 1)
        for index in range(4):
            if now.first[index]:
                # The action is ignored, and the observation is that of a new episode.
                assert now.reward[index] == 0
                assert not now.terminated[index]
                assert not now.truncated[index]
                assert (np.abs(now.obs[index]) < 0.05).all()
                continue
            plain.reset()
            plain.state = before.obs[index].astype(np.float64)
            obs, reward, terminated, _, _ = plain.step(int(actions[index]))
            np.testing.assert_allclose(now.obs[index], obs, rtol=1e-4, atol=1e-6)
            assert now.reward[index] == reward == 1
            assert now.terminated[index] == terminated
            assert now.truncated[index] == (lengths[index] == 14 and not terminated)
        terminations += now.terminated.sum()
        truncations += now.truncated.sum()
        before = now
    assert terminations >= 10
    assert truncations >= 10
    vector.close()
    plain.close()


def test_equal_seeds_give_equal_episodes():
    vector = host_environment("envpool:CartPole-v1", {}).make(3)

    def play(seed):
        steps = [vector.reset(seed)]
        steps += [vector.step(np.ones(3, np.int32)) for _ in range(30)]
        assert sum(step.first.any() for step in steps) > 2
        return np.stack([step.obs for step in steps])

    largest = 2**31 - 1
    one, again, other = play(largest), play(largest), play(7)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_a_time_step_is_not_written_to_by_later_steps():
    vector = host_environment("envpool:CartPole-v1", {}).make(2)
    first = vector.reset(0)
    before = first.obs.copy()
    vector.step(np.zeros(2, np.int32))
    np.testing.assert_array_equal(first.obs, before)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [("FrozenLake-v1", (16,), bool), ("HighwayFast-v0", (5, 5), np.float32)],
)
def test_observations_have_the_shape_and_dtype_of_the_spec(name, shape, dtype):
    host = host_environment(f"envpool:{name}", {})
    assert (host.spec.obs_shape, host.spec.obs_dtype) == (shape, dtype)
    obs = host.make(2).reset(0).obs
    assert (obs.shape, obs.dtype) == ((2, *shape), dtype)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "CartPoel-v1",
            {},
            "env='envpool:CartPoel-v1': must be an id of EnvPool; nearest: envpool:",
        ),
        ("zzzzz", {}, "env='envpool:zzzzz': must be an id of EnvPool, such as envpool:Pong-v5"),
        ("Pendulum-v1", {}, "env='envpool:Pendulum-v1': action space .*: must be discrete"),
        ("CartPole-v1", {"seed": 1}, "env_args='seed': must be an argument of envpool:CartPole-v1"),
        (
            "CartPole-v1",
            {"max_episode_step": 9},
            "env_args='max_episode_step': must be .*; nearest: max_episode_steps",
        ),
        (
            "CartPole-v1",
            {"max_episode_steps": 0},
            "env_args='max_episode_steps=0': must be a whole number of at least 1",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line_that_names_it(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        host_environment(f"envpool:{name}", arguments)
    assert "\n" not in str(raised.value)
