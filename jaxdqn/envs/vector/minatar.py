"""MinAtar games of the authors' package (Young and Tian 2019), as Gymnasium environments.

The package is an extra: ``pip install "jaxdqn[minatar]"``. Its games have the same channels and the
same order of actions as the games of gymnax (``jaxdqn.envs.judge``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from jaxdqn.lazy_modules import import_matplotlib, imported_lazily

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
PROTOCOL = {"difficulty_ramping": True, "sticky_action_prob": 0.1}
"""Arguments of the published games. They are the defaults of the package and are passed explicitly
so that reports show them."""


def is_minatar_id(name: str) -> bool:
    """Return True if a Gymnasium id belongs to a game of the package."""
    return name.startswith("MinAtar/")


def register_games() -> None:
    """Register the ids ``MinAtar/GAME-v0`` (six actions) and ``-v1`` (actions with an effect).

    Raises:
      ValueError: if the package is not installed.
    """
    if f"MinAtar/{GAMES[0]}-v1" in gymnasium.registry:
        return
    import_matplotlib()
    try:
        # The package imports the plotting libraries only for its windows, and logs a warning if
        # they are missing.
        with imported_lazily("matplotlib.pyplot", "seaborn"):
            from minatar.gym import register_envs
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ValueError(
            f"needs the package {package}, which is not installed; "
            'pip install "jaxdqn[minatar]" installs it'
        ) from error
    register_envs()


class DrawnGame(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Game that renders like the games of gymnax; the package's own rendering needs seaborn."""

    def render(self) -> Any:
        """Return a frame, uint8 [height, width, 3]."""
        from jaxdqn.envs.render import picture_of_channels

        return picture_of_channels(np.asarray(self.env.unwrapped.game.state()))  # type: ignore[attr-defined]


def drawn(make: Callable[[], gymnasium.Env[Any, Any]]) -> Callable[[], gymnasium.Env[Any, Any]]:
    """Return a function that makes the game of ``make`` with rendering."""
    return lambda: DrawnGame(make())
