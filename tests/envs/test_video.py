"""Videos of custom environments, as GIF and as MP4."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdqn import envs
from jaxdqn.envs import video

RED = (200, 30, 30)


def reset(key):
    return jnp.int32(0), jnp.zeros(2)


def step(key, state, action):
    return state + 1, jnp.zeros(2), 0.5, state == 9


def draw(state, size=(20, 60)):
    """Return a frame with a red square whose position is the state."""
    frame = np.full((*size, 3), 240, np.uint8)
    frame[5:15, int(state) * 10 : int(state) * 10 + 10] = RED
    return frame


def walk(render, limit=None, length=4):
    """Return an environment, the states 0, 1, ... and their rewards."""
    env = envs.make_environment(
        reset, step, name="walk", num_actions=2, max_episode_steps=limit, render=render
    )
    state, _ = env.reset(jax.random.key(0))
    states = [state]
    for _ in range(length):
        states.append(env.step(jax.random.key(0), states[-1], jnp.int32(0))[0])
    return env, jax.device_get(states), [0.0] + [0.5] * length


@pytest.mark.parametrize("limit", [None, 50])
def test_render_is_given_the_users_state(limit):
    env, states, _ = walk(lambda state: state, limit)
    assert [int(env.render(state)) for state in states] == [0, 1, 2, 3, 4]
    assert walk(None, limit)[0].render is None


def test_a_gif_shows_the_frames_enlarged_below_the_title(tmp_path):
    path = tmp_path / "walk.gif"
    video.save_video(path, *walk(draw))
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (5, (320, 104))
        for number in range(5):
            gif.seek(number)
            frame = np.asarray(gif.convert("RGB"))
            red = np.nonzero((frame == RED).all(axis=-1))
            # Enlarged fourfold, below 24 rows of title and centred in 320 columns.
            assert (red[0].min(), red[0].max() + 1) == (24 + 20, 24 + 60)
            assert (red[1].min(), red[1].max() + 1) == (40 + 40 * number, 80 + 40 * number)


def test_an_mp4_shows_the_same_frames(tmp_path):
    path = tmp_path / "walk.mp4"
    video.save_video(path, *walk(draw), frames_per_second=10)
    env, states, rewards = walk(draw)
    pairs = zip(map(env.render, states), rewards, strict=True)
    frames = [np.asarray(frame) for frame in video._titled_frames("walk", pairs)]
    found, meta = decode(path, tmp_path)
    assert (meta["size"], meta["fps"], meta["codec"]) == ((320, 104), 10.0, "h264")
    assert len(found) == 5
    for frame, decoded in zip(frames, found, strict=True):
        assert np.abs(frame.astype(int) - decoded).mean() < 3


def decode(path, directory):
    """Return the frames of a video and its properties.

    In a subprocess, since imageio_ffmpeg forks this one, in which JAX has threads.
    """
    code = (
        "import json, sys, numpy as np; from imageio_ffmpeg import read_frames\n"
        "frames = read_frames(sys.argv[1]); meta = next(frames)\n"
        "width, height = meta['size']\n"
        "np.save(sys.argv[2], [np.frombuffer(f, np.uint8).reshape(height, width, 3)"
        " for f in frames])\n"
        "print(json.dumps({name: meta[name] for name in ('size', 'fps', 'codec')}))\n"
    )
    out = directory / "frames.npy"
    command = [sys.executable, "-c", code, str(path), str(out)]
    meta = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return np.load(out), {**meta, "size": tuple(meta["size"])}


def test_frames_of_many_colours_and_odd_sides_are_drawn_too(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (301, 333, 3), np.uint8)
    for suffix in ("gif", "mp4"):
        path = tmp_path / f"noise.{suffix}"
        video.save_video(path, *walk(lambda state: colours, length=1))
        assert path.stat().st_size > 10_000
    with Image.open(tmp_path / "noise.gif") as gif:
        assert gif.size == (334, 326)


@pytest.mark.parametrize(
    ("render", "message"),
    [
        (lambda state: np.zeros((4, 4), np.uint8), r"must return uint8 \[height, width, 3\], not"),
        (lambda state: np.zeros((4, 4, 3)), r"not float64\[4, 4, 3\]"),
        (lambda state: np.zeros((0, 4, 3), np.uint8), r"not uint8\[0, 4, 3\]"),
        (lambda state: draw(0, (20, 60 + int(state))), r"frames of one shape, not \[20, 60, 3\]"),
    ],
)
def test_invalid_frames_are_rejected(render, message, tmp_path):
    with pytest.raises(ValueError, match=f"render: .*{message}"):
        video.save_video(tmp_path / "a.gif", *walk(render))
    assert not list(tmp_path.iterdir())


def test_invalid_arguments_are_rejected(tmp_path):
    env, states, rewards = walk(draw)
    with pytest.raises(ValueError, match=r"env='walk': must have a render function to be drawn"):
        video.save_video(tmp_path / "a.gif", env._replace(render=None), states, rewards)
    with pytest.raises(ValueError, match=r"video=.*must end in \.gif or \.mp4"):
        video.save_video(tmp_path / "a.png", env, states, rewards)
    with pytest.raises(ValueError, match="must be in a directory that exists"):
        video.save_video(tmp_path / "none" / "a.gif", env, states, rewards)
    with pytest.raises(ValueError, match="rewards: must be as many as env_states"):
        video.save_video(tmp_path / "a.gif", env, [], [])
    with pytest.raises(ValueError, match="frames_per_second=0: must be"):
        video.save_video(tmp_path / "a.gif", env, states, rewards, frames_per_second=0)
    (tmp_path / "b.gif").mkdir()
    with pytest.raises(ValueError, match=r"video=.*b\.gif': must be writable"):
        video.save_video(tmp_path / "b.gif", env, states, rewards)
    with pytest.raises(ValueError, match="render=3: must be a function"):
        walk(3)


def test_without_the_extra_an_mp4_is_one_line_that_tells_how_to_install_it(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    video.check_video_path("a.gif")
    with pytest.raises(ValueError, match=r'pip install "jaxdqn\[video\]"'):
        video.check_video_path("a.mp4")
