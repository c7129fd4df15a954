"""Gymnax environments, each against gymnax's own functions called step by step."""

import functools
import subprocess
import sys
import urllib.error

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.utils import load_mnist

from jaxdqn import envs
from jaxdqn.envs.gymnax import BINARY, CONTINUOUS, permissive_promotion

# These programs run briefly, so compile time matters more than speed.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
DISCRETE = envs.names()
LIMIT, LENGTH = 40, 130
TERMINATING = {
    "CartPole-v1",
    "Breakout-MinAtar",
    "Catch-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "SimpleBandit-bsuite",
    "MNISTBandit-bsuite",
    "FrozenLake-misc",
    "DeepSea-bsuite",
}
"""Environments that terminate within LIMIT random steps."""


@pytest.fixture(autouse=True, scope="module")
def _no_download():
    """Replace MNIST, which would be downloaded."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 127, (20, 28, 28), dtype=np.int8)
    labels = rng.integers(0, 10, 20, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_mnist, "load_mnist", lambda: ((images, labels), (images, labels)))
        yield


@functools.cache
def made(name):
    return envs.make(name, params={"max_steps_in_episode": LIMIT})


def scan_steps(env, key, actions):
    def body(state, inputs):
        return env.step(inputs[0], state, inputs[1])

    @quick_jit
    def run(key):
        key_reset, key_steps = jax.random.split(key)
        state, first = env.reset(key_reset)
        keys = jax.random.split(key_steps, len(actions))
        _, steps = jax.lax.scan(body, state, (keys, actions))
        return first, steps, key_reset, keys

    return run(key)


def loop_steps(name, key_reset, keys, actions):
    """Return the rows that gymnax's functions give in a plain Python loop."""
    with permissive_promotion():
        env, params = gymnax.make(name)
        params = params.replace(max_steps_in_episode=LIMIT)
        reset = quick_jit(lambda key: env.reset_env(key, params))

        @quick_jit
        def step(key, state, action):
            outputs = env.step_env(key, state, action, params)[:4]
            return *outputs, env.is_truncated(outputs[1], params)

        obs, state = reset(key_reset)
        rows, done = [(np.asarray(obs), 0.0, False, False, True)], False
        for key, action in zip(keys, actions, strict=True):
            if done:
                obs, state = reset(key)
                rows.append((np.asarray(obs), 0.0, False, False, True))
                done = False
                continue
            # From NumPy, so that a reset's weak types do not compile the step twice.
            obs, state, reward, terminated, cut = step(key, jax.device_get(state), action)
            truncated = bool(cut) and not bool(terminated)
            rows.append((np.asarray(obs), float(reward), bool(terminated), truncated, False))
            done = bool(terminated) or truncated
    return [np.stack(column) for column in zip(*rows, strict=True)]


SLOW_TO_COMPILE = (
    "Asterix-MinAtar",
    "BernoulliBandit-misc",
    "FourRooms-misc",
    "Freeway-MinAtar",
    "MemoryChain-bsuite",
    "MetaMaze-misc",
    "Pong-misc",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "UmbrellaChain-bsuite",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW_TO_COMPILE else name
        for name in DISCRETE
    ],
)
def test_rows_are_those_of_gymnax_stepped_by_hand(name):
    env = made(name)
    key, key_actions = jax.random.split(jax.random.key(7))
    actions = jax.random.randint(key_actions, (LENGTH,), 0, env.spec.num_actions)
    first, steps, key_reset, keys = scan_steps(env, key, actions)
    obs, reward, terminated, truncated, firsts = loop_steps(name, key_reset, keys, actions)

    ends = terminated | truncated
    assert ends.sum() >= 2
    assert (terminated if name in TERMINATING else truncated).any()
    binary = bool(np.isin(obs, (0, 1)).all())
    assert binary == (name in BINARY)
    if obs.ndim == 1:  # a state's number
        obs = np.arange(env.spec.obs_shape[0]) == obs[:, None]
    got = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, steps)
    assert got.obs.dtype == env.spec.obs_dtype
    assert got.obs.shape[1:] == env.spec.obs_shape
    np.testing.assert_array_equal(got.terminated, terminated)
    np.testing.assert_array_equal(got.truncated, truncated)
    np.testing.assert_array_equal(got.first, firsts)
    np.testing.assert_allclose(got.obs.astype(np.float64), obs, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(got.reward, reward, rtol=1e-5, atol=1e-6)
    # The row after an end opens an episode and nothing was earned there.
    np.testing.assert_array_equal(got.first[1:], ends[:-1])
    assert not got.reward[got.first].any()


@pytest.mark.parametrize("name", DISCRETE)
def test_state_is_a_fixed_point_of_step(name):
    env = made(name)
    state, _ = jax.eval_shape(env.reset, jax.random.key(0))
    after, step = jax.eval_shape(env.step, jax.random.key(0), state, jnp.int32(0))
    assert jax.tree.leaves(after) == jax.tree.leaves(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, step)))
    assert env.spec.max_episode_steps == LIMIT
    assert env.spec.obs_dtype in (jnp.bool_, jnp.float32)


def test_names_are_exactly_the_environments_with_discrete_actions():
    for name in gymnax.registered_envs:
        with permissive_promotion():
            env, params = gymnax.make(name)
            discrete = isinstance(env.action_space(params), spaces.Discrete)
        assert discrete == (name in DISCRETE), name


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_continuous_actions_are_rejected(name):
    with pytest.raises(ValueError, match=f"env='{name}': must have discrete actions"):
        envs.make(name)


def test_an_unknown_name_is_rejected_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"env='CartPole-v0': must be a known environment; nearest: CartPole-v1"
    ):
        envs.make("CartPole-v0")


def test_unknown_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"env='CartPole-v1': must have valid arguments.*gravity"):
        envs.make("CartPole-v1", gravity=1.0)
    with pytest.raises(ValueError, match=r"params='max_steps'.*nearest: max_steps_in_episode"):
        envs.make("CartPole-v1", params={"max_steps": 3})
    with pytest.raises(ValueError, match="env='MetaMaze-misc': must have valid arguments"):
        envs.make("MetaMaze-misc", maze_size=4)


def test_data_that_cannot_be_downloaded_is_a_clear_error(monkeypatch):
    def offline():
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(load_mnist, "load_mnist", offline)
    with pytest.raises(ValueError, match="'MNISTBandit-bsuite': its data could not be downloaded"):
        envs.make("MNISTBandit-bsuite")


def test_an_end_at_the_time_limit_is_terminated_not_truncated():
    env = envs.make("DeepSea-bsuite", size=3)  # sinks one row per step; the limit is the depth
    assert env.spec.max_episode_steps == 3
    _, steps, *_ = scan_steps(env, jax.random.key(0), jnp.zeros(9, jnp.int32))
    np.testing.assert_array_equal(steps.terminated, [0, 0, 1, 0, 0, 0, 1, 0, 0])
    assert not steps.truncated.any()


def test_constructor_arguments_reach_gymnax():
    assert envs.make("FrozenLake-misc", map_name="8x8").spec.obs_shape == (64,)


def test_a_balanced_cart_pole_is_truncated_at_500_with_its_true_final_observation():
    env = envs.make("CartPole-v1")

    @quick_jit
    def balance(key):
        def body(carry, key):
            state, obs = carry
            action = (obs @ jnp.array([0.1, 0.5, 1.0, 1.0]) > 0).astype(jnp.int32)
            state, step = env.step(key, state, action)
            return (state, step.obs), (obs, action, step)

        state, first = env.reset(key)
        return jax.lax.scan(body, (state, first.obs), jax.random.split(key, 502))[1]

    obs, action, steps = jax.tree.map(np.asarray, balance(jax.random.key(0)))
    assert not steps.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [499])
    np.testing.assert_array_equal(np.flatnonzero(steps.first), [500])
    np.testing.assert_allclose(steps.obs[:500], cart_pole(obs[:500], action[:500]), atol=1e-5)
    np.testing.assert_array_equal(steps.reward, np.arange(502) != 500)
    assert (np.abs(steps.obs[500]) <= 0.05).all()


def cart_pole(obs, action):
    """Return the next observation [L, 4] by the equations of Barto et al. 1983, Euler's method."""
    _x, x_dot, theta, theta_dot = obs.astype(np.float64).T
    force = np.where(action == 1, 10.0, -10.0)
    sin, cos = np.sin(theta), np.cos(theta)
    push = (force + 0.05 * theta_dot**2 * sin) / 1.1
    theta_acc = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    x_acc = push - 0.05 * theta_acc * cos / 1.1
    rates = np.stack([x_dot, x_acc, theta_dot, theta_acc], axis=-1)
    return obs + 0.02 * rates


def test_importing_the_package_does_not_import_gymnax():
    code = "import sys, jaxdqn.envs; sys.exit('gymnax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_first_import_under_x64_leaves_no_64_bit_constants():
    code = """
import jax, warnings
from jaxdqn import envs
with jax.enable_x64(True):
    envs.make("FrozenLake-misc")
warnings.simplefilter("error")
jax.config.update("jax_numpy_dtype_promotion", "strict")
environment = envs.make("FrozenLake-misc")
state, timestep = jax.eval_shape(environment.reset, jax.random.key(0))
jax.eval_shape(environment.step, jax.random.key(0), state, jax.numpy.int32(0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
