"""Frames of gymnax environments, drawn with Pillow without a display or global plotting state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from jaxdqn.envs.base import Render
from jaxdqn.envs.gymnax import permissive_promotion

WIDTH, HEIGHT = 400, 276
"""Size of every frame in pixels."""
_PALETTE = (
    "ffffff", "222222", "1f77b4", "ff7f0e", "2ca02c", "d62728",
    "9467bd", "8c564b", "e377c2", "17becf", "bcbd22", "7f7f7f",
)  # fmt: skip
_PAPER, _INK, _BLUE, _ORANGE, _GREEN, _GREY = 0, 1, 2, 3, 4, 11
_FIRST_COLOUR = 2
"""Index of the first colour of ``_PALETTE`` for the channels of an observation."""


def make_render(name: str, env: Any, env_params: Any) -> Render:
    """Make ``render(gymnax_state) -> frame``, uint8 [HEIGHT, WIDTH, 3].

    Args:
        name: a name in ``gymnax.DRAWABLE``.
        env: the gymnax environment.
        env_params: parameters of the environment.
    """
    if name in _SKETCHES:
        return lambda state: _pixels(_sketched(_SKETCHES[name], state))
    if name in _MAPS:
        return lambda state: _pixels(_cells_image(_MAPS[name](env, state)))
    observe = _observe(env, env_params)
    return lambda state: picture_of_channels(observe(state))


def picture_of_channels(obs: np.ndarray) -> np.ndarray:
    """Draw channels [height, width, ...] as a frame, uint8 [HEIGHT, WIDTH, 3]."""
    return _pixels(_cells_image(_channels(obs)))


def _observe(env: Any, env_params: Any) -> Callable[[Any], np.ndarray]:
    """Return ``observe(gymnax_state) -> obs`` [height, width, ...], gymnax's observation."""

    @jax.jit
    def observe(state: Any) -> jax.Array:
        # The key is not used, because these observations depend only on the state.
        return env.observe(jax.random.key(0), state, None, env_params)

    def run(state: Any) -> np.ndarray:
        with permissive_promotion():
            return np.asarray(observe(state))

    return run


def _channels(obs: np.ndarray) -> np.ndarray:
    """Return colour indices [height, width]; the highest non-zero channel colours a cell."""
    channels = obs.reshape(*obs.shape[:2], -1) > 0
    numbers = np.arange(channels.shape[-1]) + _FIRST_COLOUR
    return np.max(channels * numbers, axis=-1)


def _rooms(env: Any, state: Any) -> np.ndarray:
    cells = np.where(np.asarray(env.occupied_map) > 0, _GREY, _PAPER)
    cells[tuple(state.goal)] = _GREEN
    cells[tuple(state.pos)] = _BLUE
    return cells


def _frozen_lake(env: Any, state: Any) -> np.ndarray:
    # Tiles in gymnax's order: start, frozen, hole, goal.
    cells = np.asarray([_GREY, _PAPER, _INK, _GREEN])[np.asarray(env.desc)]
    cells.reshape(-1)[state.position] = _BLUE
    return cells


def _cells_image(cells: np.ndarray) -> Image.Image:
    """Draw colour indices [height, width] as an image with one square per cell."""
    scale = max(1, min(WIDTH // cells.shape[1], (HEIGHT - 4) // cells.shape[0]))
    image = Image.fromarray(np.kron(cells, np.ones((scale, scale))).astype(np.uint8))
    canvas = _canvas()
    left, top = (WIDTH - image.width) // 2, (HEIGHT - image.height) // 2
    canvas.paste(image, (left, top))
    box = (left - 1, top - 1, left + image.width, top + image.height)
    ImageDraw.Draw(canvas).rectangle(box, outline=_INK)
    return canvas


def _sketched(sketch: Callable[[ImageDraw.ImageDraw, Any], None], state: Any) -> Image.Image:
    canvas = _canvas()
    sketch(ImageDraw.Draw(canvas), state)
    return canvas


def _cart_pole(draw: ImageDraw.ImageDraw, state: Any) -> None:
    scale = WIDTH / 5.4  # pixels per metre; the track ends 2.4 m from the centre
    x, y = WIDTH / 2 + float(state.x) * scale, 206.0
    tip = x + np.sin(state.theta) * scale, y - np.cos(state.theta) * scale  # the pole is 1 m
    draw.line((0, y + 12, WIDTH, y + 12), fill=_INK)
    for end in (-2.4, 2.4):
        position = WIDTH / 2 + end * scale
        draw.line((position, y + 2, position, y + 22), fill=_GREY, width=2)
    draw.rectangle((x - 25, y - 12, x + 25, y + 12), fill=_INK)
    draw.line((x, y, *tip), fill=_ORANGE, width=7)


def _acrobot(draw: ImageDraw.ImageDraw, state: Any) -> None:
    scale, pivot = 60.0, np.array([WIDTH / 2, 136.0])
    first, second = state.joint_angle1, state.joint_angle1 + state.joint_angle2
    elbow = pivot + scale * np.array([np.sin(first), np.cos(first)])  # links of 1 m, down at 0
    tip = elbow + scale * np.array([np.sin(second), np.cos(second)])
    goal = pivot[1] - scale
    draw.line((0, goal, WIDTH, goal), fill=_GREEN)
    draw.line((*pivot, *elbow), fill=_BLUE, width=7)
    draw.line((*elbow, *tip), fill=_ORANGE, width=7)


def _mountain_car(draw: ImageDraw.ImageDraw, state: Any) -> None:
    def point(position: float) -> tuple[float, float]:
        height = np.sin(3 * position) * 0.45 + 0.55
        return (position + 1.2) / 1.8 * WIDTH, 256 - 200 * height

    draw.line([point(position) for position in np.linspace(-1.2, 0.6, 100)], fill=_INK)
    flag, car = point(0.5), point(float(state.position))
    draw.line((*flag, flag[0], flag[1] - 30), fill=_GREEN, width=3)
    draw.ellipse((car[0] - 9, car[1] - 18, car[0] + 9, car[1]), fill=_BLUE)


def _canvas() -> Image.Image:
    canvas = Image.new("P", (WIDTH, HEIGHT), _PAPER)
    canvas.putpalette(bytes.fromhex("".join(_PALETTE)))
    return canvas


def _pixels(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.convert("RGB"))


_SKETCHES: dict[str, Callable[[ImageDraw.ImageDraw, Any], None]] = {
    "CartPole-v1": _cart_pole,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": _mountain_car,
}
_MAPS: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "FourRooms-misc": _rooms,
    "MetaMaze-misc": _rooms,
    "FrozenLake-misc": _frozen_lake,
}
