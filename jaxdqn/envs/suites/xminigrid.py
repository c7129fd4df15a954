"""XLand-MiniGrid, ``xminigrid:ID``.

Arguments: the plain fields of ``EnvParams``, such as ``max_steps``, ``view_size``, ``height`` and
``width``. An observation [view, view, (tile, colour)] becomes planes, [view, view, 25] bool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdqn.envs.arguments import changed, checked, plain_fields
from jaxdqn.envs.suites.adapter import Source, import_suite, require_id
from jaxdqn.envs.suites.observations import planes
from jaxdqn.types import Array


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return an environment of XLand-MiniGrid.

    An episode terminates at the goal, with a discount of 0, and is truncated after ``max_steps``.

    Raises:
        ValueError: if XLand-MiniGrid is not installed, or the id or an argument is unknown or
            invalid.
    """
    name = f"xminigrid:{ident}"
    xminigrid, types, constants = import_suite(
        name, "xminigrid", "xminigrid.types", "xminigrid.core.constants"
    )
    require_id(name, xminigrid.registered_environments())
    defaults = plain_fields(xminigrid.make(ident)[1], without=("render_mode",))
    env, params = xminigrid.make(ident, **checked(name, arguments, defaults))
    sizes = (constants.NUM_TILES, constants.NUM_COLORS)

    def reset(key: Array) -> tuple[Any, Array]:
        timestep = env.reset(params, key)
        return timestep.state, timestep.observation

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        before = types.TimeStep(state, step_type=None, reward=None, discount=None, observation=None)
        timestep = env.step(params, before, action)
        last, terminated = timestep.last(), timestep.discount == 0
        obs, reward = timestep.observation, timestep.reward
        return timestep.state, obs, reward, last & terminated, last & ~terminated

    def render(state: Any) -> Any:
        frame = types.TimeStep(state, step_type=None, reward=None, discount=None, observation=None)
        return env.render(params, frame)

    return Source(
        reset,
        step,
        num_actions=int(env.num_actions(params)),
        max_episode_steps=int(params.max_steps),
        view=lambda grid: planes(grid, sizes),
        render=render,
        changed=changed(arguments, defaults),
    )
