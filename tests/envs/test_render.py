"""Pictures of gymnax environments, through the videos that are made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdqn import envs
from jaxdqn.envs.video import require_drawable, save_video
from tests.toys import quick_jit

ORANGE, BLUE, RED = (255, 127, 14), (31, 119, 180), (214, 39, 40)


def play(name, length, action):
    """Return an environment, the states of repeating one action, and their rewards."""
    env = envs.make(name)
    step = quick_jit(env.step)
    state, _ = quick_jit(env.reset)(jax.random.key(0))
    states, rewards = [state], [0.0]
    for key in jax.random.split(jax.random.key(1), length):
        state, timestep = step(key, state, jnp.int32(action))
        states.append(state)
        rewards.append(float(timestep.reward))
    return env, jax.device_get(states), rewards


def frames_of(path):
    with Image.open(path) as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
        return frames


def has_colour(frame, colour):
    return (frame == colour).all(axis=-1)


def test_cart_pole_is_drawn_frame_by_frame_and_its_pole_falls_the_right_way(tmp_path):
    path = tmp_path / "cart.gif"
    env, states, rewards = play("CartPole-v1", 8, action=0)
    assert float(states[-1].inner.theta) > 0.1
    save_video(path, env, states, rewards)
    frames = frames_of(path)
    assert len(frames) == 9
    # Pushed left, the cart moves left and the pole leans right: its top is right of its foot.
    rows, columns = np.nonzero(has_colour(frames[-1], ORANGE))
    assert columns[rows == rows.min()].mean() > columns[rows == rows.max()].mean() + 3


def test_breakout_is_drawn_as_its_observation(tmp_path):
    path = tmp_path / "breakout.gif"
    env, states, rewards = play("Breakout-MinAtar", 4, action=1)
    save_video(path, env, states, rewards)
    frames = frames_of(path)
    assert len(frames) == 5
    cell = 27
    for frame, state in zip(frames, states, strict=True):
        bricks = int(state.inner.brick_map.sum())
        assert has_colour(frame, RED).sum() == bricks * cell**2
        left = np.nonzero(has_colour(frame, BLUE))[1].min()
        assert left == (400 - 10 * cell) // 2 + int(state.inner.pos) * cell


@pytest.mark.parametrize(
    "name", ["Acrobot-v1", "MountainCar-v0", "FrozenLake-misc", "MetaMaze-misc"]
)
def test_others_are_drawn_too(name, tmp_path):
    path = tmp_path / "episode.gif"
    env, states, rewards = play(name, 6, action=2)
    save_video(path, env, states, rewards)
    frames = frames_of(path)
    assert len(frames) == 7
    assert not np.array_equal(frames[0][24:], frames[-1][24:])


def test_every_drawable_environment_draws_its_first_state():
    for name in sorted(envs.gymnax.DRAWABLE):
        env = envs.make(name)
        require_drawable(env)
        if name.endswith("-MinAtar") and name != "Breakout-MinAtar":
            continue  # slow to compile
        state, _ = quick_jit(env.reset)(jax.random.key(0))
        frame = env.render(jax.device_get(state))
        assert (frame.shape, frame.dtype) == ((276, 400, 3), np.uint8), name


def test_an_environment_that_cannot_be_drawn_is_rejected():
    with pytest.raises(ValueError, match=r"env='SimpleBandit-bsuite': must have a render function"):
        require_drawable(envs.make("SimpleBandit-bsuite"))
