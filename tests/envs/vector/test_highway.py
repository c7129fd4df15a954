"""HighwayFast-v0 of EnvPool is the highway-fast-v0 of highway-env: resets, rewards, observations.

The actions are the same, and so is the observation: rows of presence, x, y, vx and vy, the first of
the ego vehicle, the others relative to it. A policy needs no mapping between the two.
"""

import warnings

import gymnasium
import numpy as np
import pytest
from scipy import stats

from jaxdqn.envs.vector import host_environment

pytest.importorskip("envpool")
with warnings.catch_warnings(action="ignore"):
    pytest.importorskip("highway_env")

pytestmark = pytest.mark.filterwarnings("ignore")  # of pygame and of bounds in float64
LANE_LEFT, IDLE, LANE_RIGHT, FASTER, SLOWER = range(5)
SEQUENCES = [(SLOWER, SLOWER, IDLE), (FASTER, IDLE, SLOWER), (LANE_RIGHT, LANE_LEFT, IDLE)]
X, Y, VX = 1, 2, 3


@pytest.fixture(scope="module")
def original():
    env = gymnasium.make("highway_env:highway-fast-v0")
    yield env
    env.close()


@pytest.fixture(scope="module")
def pool():
    return host_environment("envpool:HighwayFast-v0", {}).make(200)


def lanes_of(obs):
    return np.rint(obs[..., 0, Y] * 3).astype(int)


@pytest.mark.filterwarnings("ignore")
def test_specs_agree():
    here = host_environment("envpool:HighwayFast-v0", {}).spec
    there = host_environment("gymnasium:highway_env:highway-fast-v0", {}).spec
    for name in ("obs_shape", "obs_dtype", "num_actions"):
        assert getattr(here, name) == getattr(there, name)
    # The original truncates by its own clock, after 30 steps as well.
    assert (here.max_episode_steps, there.max_episode_steps) == (30, None)


def test_resets_have_the_same_distribution(original, pool):
    there = np.array([original.reset(seed=seed)[0] for seed in range(60)])
    here = np.concatenate([pool.reset(1000 * seed).obs for seed in range(5)])
    assert not np.array_equal(here[:200], here[200:400])
    for vehicle in range(5):
        for feature in (X, Y, VX):
            test = stats.ks_2samp(there[:, vehicle, feature], here[:, vehicle, feature])
            assert test.pvalue > 1e-3, (vehicle, feature)
    for obs in (there, here):
        counts = np.bincount(lanes_of(obs), minlength=3)
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("actions", SEQUENCES)
def test_rewards_and_the_ego_vehicle_agree_until_a_crash(original, pool, actions):
    """The other vehicles differ, since both draw them at random, and act on the ego by crashes."""
    obs = pool.reset(0).obs
    lanes, crashed, here = lanes_of(obs), np.zeros(200, bool), []
    for action in actions:
        timestep = pool.step(np.full(200, action, np.int32))
        crashed |= timestep.terminated | timestep.first
        here.append((timestep.reward, timestep.obs[:, 0, Y:]))
    seen = set()
    for seed in range(40):
        lane = int(lanes_of(original.reset(seed=seed)[0]))
        if lane in seen:
            continue
        steps = [original.step(action) for action in actions]
        if any(terminated for _, _, terminated, _, _ in steps):
            continue
        seen.add(lane)
        matching = (lanes == lane) & ~crashed
        assert matching.sum() > 20
        for (rewards, ego), (obs, reward, _, _, _) in zip(here, steps, strict=True):
            np.testing.assert_allclose(rewards[matching], reward, atol=2e-3)
            np.testing.assert_allclose(
                ego[matching], np.broadcast_to(obs[0, Y:], (matching.sum(), 3)), atol=2e-3
            )
        if len(seen) == 3:
            break
    assert seen == {0, 1, 2}


def test_the_reward_of_a_crash_lacks_the_share_of_a_collision(original, pool):
    """A crash costs two thirds of the range of rewards in both: 1 of the 1.5 from -1 to 0.5."""
    found = []
    pool.reset(0)
    while len(found) < 20:
        timestep = pool.step(np.full(200, FASTER, np.int32))
        found += timestep.reward[timestep.terminated].tolist()
    for seed in range(20):
        original.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            _, reward, terminated, truncated, _ = original.step(FASTER)
        if terminated:
            break
    assert terminated
    assert max(found) < 0.35
    assert reward < 0.35
