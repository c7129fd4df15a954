"""Bat-and-ball, a game of 84x84 frames on the device.

A ball falls from the top of the court at a random angle, and bounces off the side walls. If the bat
at the bottom hits the ball, the reward is +1, and the ball rises to the ceiling and falls again at
a new random angle. If the ball passes the bat, the reward is -1, and the next ball starts at the
top. The loss of the last ball ends the episode.

Positions are integer pixels from the upper left corner. The ball falls and rises ``BALL`` pixels
per step, from row 0 to the bat in ``FALL`` steps. The bat is faster than the sideways motion of the
ball, and crosses the court within a fall, so every ball can be returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.types import Array

SIDE = 84
"""Height and width of a frame, in pixels."""
BALL = 4
"""Side of the ball and height of the bat, in pixels. In a step the ball moves as far up or down,
and the bat as far sideways."""
FALL = (SIDE - 2 * BALL) // BALL
"""Steps from the top of the court to the bat."""
MAX_DRIFT = 3
"""Maximum number of pixels that the ball moves sideways in a step."""
STAY, LEFT, RIGHT = range(3)
"""Actions."""
BALL_GREY, BAT_GREY = 255, 160
"""Intensities of ball and bat; the background is 0."""

_FLOOR, _EDGE = SIDE - 2 * BALL, SIDE - BALL
_SCALE = 4
_COLOURS = {0: (24, 28, 36), BALL_GREY: (255, 214, 64), BAT_GREY: (92, 184, 255)}


class CourtState(NamedTuple):
    """State of the game; every leaf is [] int32."""

    ball_x: Array
    """left edge of the ball"""
    ball_y: Array
    """upper edge of the ball, a multiple of ``BALL``"""
    drift: Array
    """pixels that the ball moves to the right in a step; negative to the left"""
    rising: Array
    """1 while the ball rises, 0 while it falls"""
    bat_x: Array
    """left edge of the bat"""
    balls: Array
    """number of balls left, including the ball in play"""


def best_return(max_episode_steps: int) -> int:
    """Return the undiscounted return of a policy that hits every ball until the time limit.

    The ball is first hit after ``FALL`` steps, and then every ``2 * FALL`` steps.
    """
    return (max_episode_steps + FALL) // (2 * FALL)


def make_game(bat_width: int, balls: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return ``reset(key)`` and ``step(key, state, action)`` of the game, without a time limit.

    ``reset`` returns ``(state, view)`` and ``step`` returns ``(state, view, reward, terminated)``.
    The view, [3] int32, consists of the left edge and the upper edge of the ball and the left edge
    of the bat; ``draw_frame`` draws the observation from it.

    Args:
      bat_width: pixels.
      balls: number of balls; the loss of the last one ends the episode.
    """

    def reset(key: Array) -> tuple[CourtState, Array]:
        ball_x, drift = _serve(key)
        zero = jnp.int32(0)
        bat_x = jnp.int32((SIDE - bat_width) // 2)
        state = CourtState(ball_x, zero, drift, zero, bat_x, jnp.int32(balls))
        return state, view_of(state)

    def step(
        key: Array, state: CourtState, action: Array
    ) -> tuple[CourtState, Array, Array, Array]:
        direction = jnp.where(action == RIGHT, 1, jnp.where(action == LEFT, -1, 0))
        bat_x = jnp.clip(state.bat_x + BALL * direction, 0, SIDE - bat_width)
        ball_y = state.ball_y + jnp.where(state.rising == 1, -BALL, BALL)
        free_x = state.ball_x + state.drift
        ball_x = _EDGE - jnp.abs(_EDGE - jnp.abs(free_x))
        drift = jnp.where(ball_x == free_x, state.drift, -state.drift)

        low = ball_y == _FLOOR
        touches = (ball_x + BALL > bat_x) & (ball_x < bat_x + bat_width)
        returned, missed = low & touches, low & ~touches
        serve_x, new_drift = _serve(key)
        high = (ball_y == 0) & (state.rising == 1)
        rising = jnp.where(returned, 1, jnp.where(low | high, 0, state.rising))
        state = CourtState(
            ball_x=jnp.where(missed, serve_x, ball_x),
            ball_y=jnp.where(missed, 0, ball_y),
            drift=jnp.where(missed | high, new_drift, drift),
            rising=rising,
            bat_x=bat_x,
            balls=state.balls - missed.astype(jnp.int32),
        )
        reward = returned.astype(jnp.float32) - missed.astype(jnp.float32)
        return state, view_of(state), reward, state.balls == 0

    return reset, step


def _serve(key: Array) -> tuple[Array, Array]:
    """Return a random left edge and a random drift for a ball, [] int32 each."""
    key_x, key_drift = jax.random.split(key)
    return (
        jax.random.randint(key_x, (), 0, _EDGE + 1, jnp.int32),
        jax.random.randint(key_drift, (), -MAX_DRIFT, MAX_DRIFT + 1, jnp.int32),
    )


def view_of(state: CourtState) -> Array:
    """Return the positions that a frame shows, [3] int32."""
    return jnp.stack([state.ball_x, state.ball_y, state.bat_x])


def draw_frame(view: Array, bat_width: int) -> Array:
    """Draw the positions of ``view_of`` as a frame, [84, 84] uint8."""
    pixels = jnp.arange(SIDE, dtype=jnp.int32)

    def span(start: Array | int, length: int) -> Array:
        return (pixels >= start) & (pixels < start + length)

    ball = span(view[1], BALL)[:, None] & span(view[0], BALL)[None, :]
    bat = span(_EDGE, BALL)[:, None] & span(view[2], bat_width)[None, :]
    frame = jnp.where(ball, BALL_GREY, jnp.where(bat, BAT_GREY, 0))
    return frame.astype(jnp.uint8)


def render(state: CourtState, bat_width: int) -> np.ndarray:
    """Draw a state in colours at four times the size, uint8 [336, 336, 3], for videos."""
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[_EDGE:, int(state.bat_x) : int(state.bat_x) + bat_width] = BAT_GREY
    x, y = int(state.ball_x), int(state.ball_y)
    grey[y : y + BALL, x : x + BALL] = BALL_GREY
    colours = np.zeros((256, 3), np.uint8)
    for intensity, colour in _COLOURS.items():
        colours[intensity] = colour
    return np.repeat(np.repeat(colours[grey], _SCALE, axis=0), _SCALE, axis=1)
