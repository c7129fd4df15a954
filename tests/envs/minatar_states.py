"""States of the published MinAtar games as states of gymnax's games."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

MODULES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}


def published_game(game: str, seed: int) -> Any:
    """Return a game of the package without sticky actions, in its first state."""
    env = import_module(f"minatar.environments.{MODULES[game]}").Env(ramping=True)
    env.random = np.random.RandomState(seed)
    env.reset()
    return env


def gymnax_fields(game: str, env: Any) -> dict[str, Any]:
    """Return the fields of the gymnax state that equals the state of a published game."""
    lists = ("entities", "cars", "f_bullets", "e_bullets", "e_fish", "e_subs", "divers")
    fields = {name: value for name, value in vars(env).items() if name not in lists}
    if game == "Asterix":
        filled = [[0] * 5 if each is None else [*map(int, each), 1] for each in env.entities]
        return {**fields, "entities": np.array(filled)}
    if game == "Freeway":
        return {**fields, "cars": np.array(env.cars)}
    if game == "Seaquest":
        lists = {"f_bullets": 3, "e_bullets": 3, "e_fish": 4, "e_subs": 5, "divers": 4}
        for name, width in lists.items():
            held = getattr(env, name)
            rows = np.zeros((100, width), int)
            rows[: len(held)] = np.array(held, int).reshape(len(held), width)
            fields[name] = rows
            singular = name[:-1] if name.endswith("bullets") else name
            fields[f"{singular}_count"] = len(held)
    return fields


def draws_random_numbers(game: str, env: Any, action: int) -> bool:
    """Return whether the next step of a published game may draw random numbers."""
    if game == "Asterix":
        return env.spawn_timer == 0
    if game == "Freeway":
        return env.pos == 1 and action == 2 and env.move_timer == 0
    if game == "Seaquest":
        return env.e_spawn_timer == 0 or env.d_spawn_timer == 0
    return False
