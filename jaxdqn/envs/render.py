"""Animated pictures of episodes, drawn with Pillow: no display, no global plotting state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from jaxdqn.envs.base import EpisodeState
from jaxdqn.envs.gymnax import BINARY, load, permissive_promotion

_WIDTH, _HEIGHT, _TITLE = 400, 300, 24
_PAPER, _INK, _FIRST_COLOUR = 0, 1, 2
_PALETTE = (
    "ffffff", "222222", "1f77b4", "ff7f0e", "2ca02c", "d62728",
    "9467bd", "8c564b", "e377c2", "17becf", "bcbd22", "7f7f7f",
)  # fmt: skip
_BLUE, _ORANGE, _GREEN, _GREY = 2, 3, 4, 11


def drawable_names() -> list[str]:
    """Return the names of the environments that ``save_gif`` can draw."""
    return sorted({*_SKETCHES, *_MAPS, *_GRIDS})


def require_drawable(name: str) -> None:
    """Check that an environment can be drawn, before its episode is played.

    Raises:
        ValueError: if it cannot.
    """
    if name not in drawable_names():
        raise ValueError(f"env={name!r}: must be one to draw: {', '.join(drawable_names())}")


def save_gif(
    path: str | Path,
    name: str,
    env_states: Sequence[EpisodeState],
    rewards: Sequence[float],
    *,
    frames_per_second: int = 20,
    params: Mapping[str, Any] | None = None,
    **env_kwargs: Any,
) -> None:
    """Write an episode as an animated GIF, one frame a state.

    Args:
        path: the file to write, ending in ``.gif``.
        name: one of ``drawable_names()``.
        env_states: the states of ``envs.make(name, ...)``, in order.
        rewards: the reward that led to each state (0 for the first of an
            episode); the return so far is written above the picture.
        frames_per_second: at most 50, what a GIF can show.
        params: as the environment was made with.
        **env_kwargs: as the environment was made with.

    Raises:
        ValueError: if the environment cannot be drawn or an argument is out of range.
    """
    require_drawable(name)
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"path={str(path)!r}: must end in .gif")
    if not env_states or len(env_states) != len(rewards):
        raise ValueError(
            f"rewards: must be as many as env_states, at least one, "
            f"not {len(rewards)} for {len(env_states)}"
        )
    if not 1 <= frames_per_second <= 50:
        raise ValueError(f"frames_per_second={frames_per_second!r}: must be from 1 to 50")
    states = jax.device_get([state.inner for state in env_states])
    env, env_params = load(name, params=params, **env_kwargs)
    scenes = _scenes(name, env, env_params, states)
    returns = np.cumsum(np.asarray(rewards, np.float64))
    frames = [
        _titled(scene, f"{name}   step {step}   return {total:.4g}")
        for step, (scene, total) in enumerate(zip(scenes, returns, strict=True))
    ]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / frames_per_second),
        loop=0,
    )


def _scenes(name: str, env: Any, env_params: Any, states: list[Any]) -> list[Image.Image]:
    if name in _SKETCHES:
        return [_sketched(_SKETCHES[name], state) for state in states]
    if name in _MAPS:
        return [_cells_image(_MAPS[name](env, state)) for state in states]
    return [_cells_image(_channels(obs)) for obs in _observations(env, env_params, states)]


def _observations(env: Any, env_params: Any, states: list[Any]) -> np.ndarray:
    """Return gymnax's observation of each state, [L, O]."""
    key = jax.random.key(0)  # these observations are functions of the state alone
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    with permissive_promotion():
        observe = jax.vmap(lambda state: env.observe(key, state, None, env_params))
        return np.asarray(jax.jit(observe)(stacked))


def _channels(obs: np.ndarray) -> np.ndarray:
    """Return colour indices [height, width]: the highest channel set wins a cell."""
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
    scale = max(1, min(_WIDTH // cells.shape[1], (_HEIGHT - _TITLE - 4) // cells.shape[0]))
    image = Image.fromarray(np.kron(cells, np.ones((scale, scale))).astype(np.uint8))
    canvas = _canvas()
    left = (_WIDTH - image.width) // 2
    canvas.paste(image, (left, _TITLE))
    box = (left - 1, _TITLE - 1, left + image.width, _TITLE + image.height)
    ImageDraw.Draw(canvas).rectangle(box, outline=_INK)
    return canvas


def _sketched(sketch: Callable[[ImageDraw.ImageDraw, Any], None], state: Any) -> Image.Image:
    canvas = _canvas()
    sketch(ImageDraw.Draw(canvas), state)
    return canvas


def _cart_pole(draw: ImageDraw.ImageDraw, state: Any) -> None:
    scale = _WIDTH / 5.4  # pixels a metre; the track ends at 2.4 m either side
    x, y = _WIDTH / 2 + float(state.x) * scale, 230.0
    tip = x + np.sin(state.theta) * scale, y - np.cos(state.theta) * scale  # the pole is 1 m
    draw.line((0, y + 12, _WIDTH, y + 12), fill=_INK)
    for end in (-2.4, 2.4):
        at = _WIDTH / 2 + end * scale
        draw.line((at, y + 2, at, y + 22), fill=_GREY, width=2)
    draw.rectangle((x - 25, y - 12, x + 25, y + 12), fill=_INK)
    draw.line((x, y, *tip), fill=_ORANGE, width=7)


def _acrobot(draw: ImageDraw.ImageDraw, state: Any) -> None:
    scale, pivot = 60.0, np.array([_WIDTH / 2, 160.0])
    first, second = state.joint_angle1, state.joint_angle1 + state.joint_angle2
    elbow = pivot + scale * np.array([np.sin(first), np.cos(first)])  # links of 1 m, down at 0
    tip = elbow + scale * np.array([np.sin(second), np.cos(second)])
    goal = pivot[1] - scale
    draw.line((0, goal, _WIDTH, goal), fill=_GREEN)
    draw.line((*pivot, *elbow), fill=_BLUE, width=7)
    draw.line((*elbow, *tip), fill=_ORANGE, width=7)


def _mountain_car(draw: ImageDraw.ImageDraw, state: Any) -> None:
    def point(position: float) -> tuple[float, float]:
        height = np.sin(3 * position) * 0.45 + 0.55
        return (position + 1.2) / 1.8 * _WIDTH, 280 - 200 * height

    draw.line([point(position) for position in np.linspace(-1.2, 0.6, 100)], fill=_INK)
    flag, car = point(0.5), point(float(state.position))
    draw.line((*flag, flag[0], flag[1] - 30), fill=_GREEN, width=3)
    draw.ellipse((car[0] - 9, car[1] - 18, car[0] + 9, car[1]), fill=_BLUE)


def _canvas() -> Image.Image:
    canvas = Image.new("P", (_WIDTH, _HEIGHT), _PAPER)
    canvas.putpalette(bytes.fromhex("".join(_PALETTE)))
    return canvas


def _titled(scene: Image.Image, title: str) -> Image.Image:
    ImageDraw.Draw(scene).text((8, 6), title, fill=_INK)
    return scene


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
_GRIDS = BINARY - {"SimpleBandit-bsuite"}
"""Environments whose binary observation is a picture."""
