"""Pgx, single-player games, ``pgx:ID``.

Arguments: ``max_episode_steps``, a time limit, which Pgx itself lacks; ``masks``; and the arguments
of the game's constructor, such as ``sticky_action_prob`` of MinAtar. Observations are bool. In Pgx
an illegal action ends the game with a reward of -1. Illegal actions are masked unless ``masks`` is
False.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax

from jaxdqn.envs.arguments import changed, checked
from jaxdqn.envs.suites.adapter import Source, import_suite, limited, require_id
from jaxdqn.errors import reject
from jaxdqn.types import Array


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return a single-player game of Pgx.

    Raises:
        ValueError: if Pgx is not installed, the game has several players, or the id or an argument
            is unknown or invalid.
    """
    name = f"pgx:{ident}"
    (pgx,) = import_suite(name, "pgx")
    require_id(name, pgx.available_envs())
    env = pgx.make(ident)
    if env.num_players != 1:
        alone = [game for game in pgx.available_envs() if game == "2048" or "minatar" in game]
        reject("env", name, f"a game of one player, not {env.num_players}: {', '.join(alone)}")
    parameters = inspect.signature(type(env)).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    defaults |= {"max_episode_steps": None, "masks": True}
    values = checked(name, arguments, defaults)
    masks = values.pop("masks", True)
    limit = values.pop("max_episode_steps", None)
    env = type(env)(**values)

    def reset(key: Array) -> tuple[Any, Array]:
        state = env.init(key)
        return state.replace(observation=()), state.observation

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        state = env.step(state, action, key)
        carried = state.replace(observation=())
        return carried, state.observation, state.rewards[0], state.terminated, state.truncated

    # Not env.num_actions, which would compile and run a reset.
    (num_actions,) = jax.eval_shape(env.init, jax.random.key(0)).legal_action_mask.shape
    game = Source(
        reset,
        step,
        num_actions,
        legal=(lambda state: state.legal_action_mask) if masks else None,
        changed=changed(arguments, defaults),
    )
    return limited(game, limit)
