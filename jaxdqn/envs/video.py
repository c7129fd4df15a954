"""Write episodes as animated GIF or MP4 files."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxdqn.envs.base import EpisodeState
from jaxdqn.envs.gymnax import DRAWABLE
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.types import Environment

_TITLE_HEIGHT = 24
_MIN_WIDTH = 320
"""Minimum width in pixels, required by the title."""
_MIN_SIDE = 240
"""Minimum length of the longer side in pixels; smaller frames are enlarged."""
_PAPER, _INK = (255, 255, 255), (34, 34, 34)


def require_drawable(environment: Environment | HostEnvironment) -> None:
    """Check that an environment can be rendered.

    Raises:
        ValueError: if an environment on the device has no ``render``, or an environment on the
            host has no ``make_drawable``.
    """
    name = environment.spec.name
    if isinstance(environment, HostEnvironment):
        if environment.make_drawable is None:
            raise ValueError(
                f"env={name!r}: must have frames to be drawn: an environment of Gymnasium needs "
                "the render mode rgb_array (for your own: from_gymnasium(..., make_drawable=...)), "
                "and a HostEnvironment needs a function make_drawable"
            )
    elif environment.render is None:
        raise ValueError(
            f"env={name!r}: must have a render function to be drawn: build your "
            "own with make_environment(..., render=...), where render(state) returns uint8 "
            f"[height, width, 3]; registered environments that have one: "
            f"{', '.join(sorted(DRAWABLE))}"
        )


def check_video_path(path: str | os.PathLike[str]) -> None:
    """Check, before the episode is played, that a video can be written to a file.

    Raises:
        ValueError: if the suffix is unknown, the directory does not exist, or MP4 support is not
            installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"video={os.fspath(path)!r}: must end in .gif or .mp4")
    if not Path(path).parent.is_dir():
        raise ValueError(f"video={os.fspath(path)!r}: must be in a directory that exists")
    if suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            f"video={os.fspath(path)!r}: must end in .gif, since MP4 support is not installed; "
            'install it with pip install "jaxdqn[video]"'
        )


def save_video(
    path: str | os.PathLike[str],
    environment: Environment,
    env_states: Sequence[EpisodeState],
    rewards: Sequence[float],
    *,
    frames_per_second: int = 20,
) -> None:
    """Write an episode as a video, one frame per state.

    Args:
        path: file to write, ending in ``.gif`` or ``.mp4``.
        environment: environment whose ``render`` draws the states.
        env_states: states of the environment, in order.
        rewards: reward received on reaching each state (0 for the first state of an episode); the
            title of a frame shows the return so far.
        frames_per_second: at most 50, the limit of a GIF.

    Raises:
        ValueError: if the environment cannot be drawn, its ``render`` returns an invalid frame,
            an argument is out of range, or the file cannot be written.
        RuntimeError: if ffmpeg fails.
    """
    require_drawable(environment)
    if not env_states or len(env_states) != len(rewards):
        raise ValueError(
            f"rewards: must be as many as env_states, at least one, "
            f"not {len(rewards)} for {len(env_states)}"
        )
    assert environment.render is not None
    frames = zip(map(environment.render, env_states), rewards, strict=True)
    save_frames(path, environment.spec.name, frames, frames_per_second=frames_per_second)


def save_frames(
    path: str | os.PathLike[str],
    name: str,
    frames: Iterable[tuple[Any, float]],
    *,
    frames_per_second: int = 20,
) -> None:
    """Write an episode as a video from its frames.

    Args:
        path: file to write, ending in ``.gif`` or ``.mp4``.
        name: name of the environment, for the title.
        frames: at least one pair (frame, reward): uint8 [height, width, 3], and the reward received
            on reaching it. An iterator is read once, one frame at a time.
        frames_per_second: at most 50, the limit of a GIF.

    Raises:
        ValueError: if a frame is invalid, an argument is out of range, or the file cannot be
            written.
        RuntimeError: if ffmpeg fails.
    """
    check_video_path(path)
    if not 1 <= frames_per_second <= 50:
        raise ValueError(f"frames_per_second={frames_per_second!r}: must be from 1 to 50")
    encode = _encode_gif if Path(path).suffix.lower() == ".gif" else _encode_mp4
    video = encode(_titled_frames(name, frames), frames_per_second)
    try:
        Path(path).write_bytes(video)
    except OSError as error:
        raise ValueError(
            f"video={os.fspath(path)!r}: must be writable: {error.strerror}"
        ) from error


def _titled_frames(name: str, frames: Iterable[tuple[Any, float]]) -> Iterator[Image.Image]:
    """Yield the titled frames, all of the same size."""
    shape, total = None, 0.0
    for step, (picture, reward) in enumerate(frames):
        frame, total = np.asarray(picture), total + float(reward)
        shape = shape or frame.shape
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(
                f"render: must return uint8 [height, width, 3], not {frame.dtype}"
                f"{list(frame.shape)}"
            )
        if frame.shape != shape:
            raise ValueError(
                f"render: must return frames of one shape, not {list(shape)} and "
                f"{list(frame.shape)}"
            )
        yield _titled(frame, f"{name}   step {step}   return {total:.4g}")


def _titled(frame: np.ndarray, title: str) -> Image.Image:
    """Return a frame below its title; enlarge a small frame by an integer factor."""
    factor = max(1, _MIN_SIDE // max(frame.shape[:2]))
    height, width = frame.shape[0] * factor, frame.shape[1] * factor
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
    # The MP4 encoder requires even sides.
    size = max(width, _MIN_WIDTH), height + _TITLE_HEIGHT
    canvas = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), _PAPER)
    canvas.paste(image, ((canvas.width - width) // 2, _TITLE_HEIGHT))
    ImageDraw.Draw(canvas).text((8, 4), title, fill=_INK, font=ImageFont.load_default(14))
    return canvas


def _encode_gif(frames: Iterator[Image.Image], frames_per_second: int) -> bytes:
    indexed, file = map(_indexed, frames), io.BytesIO()
    next(indexed).save(
        file,
        format="GIF",
        save_all=True,
        append_images=indexed,
        duration=round(1000 / frames_per_second),
        loop=0,
    )
    return file.getvalue()


def _indexed(frame: Image.Image) -> Image.Image:
    """Convert a frame to a palette image, exact for up to 256 colours."""
    counted: Any = frame.getcolors(256)
    if counted is None:
        return frame.quantize(256)
    codes = np.asarray(frame).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    colours = np.array(sorted(r << 16 | g << 8 | b for _, (r, g, b) in counted))
    image = Image.fromarray(np.searchsorted(colours, codes).astype(np.uint8))
    palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1)
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def _encode_mp4(frames: Iterator[Image.Image], frames_per_second: int) -> bytes:
    """Encode frames as H.264 with yuv420p, the pixel format that most players support."""
    from imageio_ffmpeg import get_ffmpeg_exe

    first = next(frames)
    with tempfile.TemporaryDirectory() as directory:
        file, log = Path(directory) / "video.mp4", Path(directory) / "errors.txt"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{first.width}x{first.height}"]
        source += ["-r", f"{frames_per_second}", "-i", "-"]
        target = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", str(file)]
        # Not imageio_ffmpeg.write_frames: it forks, which can deadlock because JAX runs threads.
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                [get_ffmpeg_exe(), "-loglevel", "error", *source, *target],
                stdin=subprocess.PIPE,
                stderr=errors,
            ) as process,
        ):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the exit code is checked below
                for frame in chain([first], frames):
                    process.stdin.write(frame.tobytes())
                process.stdin.close()
        if process.returncode != 0:
            raise RuntimeError(f"ffmpeg failed: {log.read_text(errors='replace').strip()}")
        return file.read_bytes()
