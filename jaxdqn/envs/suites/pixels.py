"""Games of this library with frames of 84x84 pixels, ``pixels:ID``; no other package is needed.

Arguments of ``pixels:bat-and-ball``: ``bat_width`` (pixels), ``balls`` that may be lost, and
``max_episode_steps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxdqn.envs import bat_and_ball
from jaxdqn.envs.arguments import changed, checked
from jaxdqn.envs.suites.adapter import Source, limited, require_id
from jaxdqn.errors import reject
from jaxdqn.types import Array

DEFAULTS = {"bat_width": 16, "balls": 5, "max_episode_steps": 400}
"""Arguments of bat-and-ball."""
_WIDTHS = (8, bat_and_ball.SIDE)
"""Minimum and maximum width of the bat; a narrower bat could not return every ball."""


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return a game of this library.

    Raises:
        ValueError: if the id or an argument is unknown, or a value is out of range.
    """
    name = f"pixels:{ident}"
    require_id(name, ["bat-and-ball"])
    values: dict[str, int] = {**DEFAULTS, **checked(name, arguments, DEFAULTS)}
    width, balls = values["bat_width"], values["balls"]
    if not _WIDTHS[0] <= width <= _WIDTHS[1]:
        reject("env_args", f"bat_width={width}", f"between {_WIDTHS[0]} and {_WIDTHS[1]}")
    if balls < 1:
        reject("env_args", f"balls={balls}", "at least 1")
    reset, step = bat_and_ball.make_game(width, balls)

    def endless_step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        return (*step(key, state, action), jnp.zeros((), bool))

    game = Source(
        reset,
        endless_step,
        num_actions=3,
        view=partial(bat_and_ball.draw_frame, bat_width=width),
        render=partial(bat_and_ball.render, bat_width=width),
        changed=changed(values, DEFAULTS),
    )
    return limited(game, values["max_episode_steps"])
