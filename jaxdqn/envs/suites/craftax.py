"""Craftax and Craftax-Classic, ``craftax:ID``.

Arguments: the plain fields of ``EnvParams``, such as ``max_timesteps``, and of
``StaticEnvParams``, such as ``max_melee_mobs``. Observations are float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdqn.envs.arguments import changed, checked, plain_fields
from jaxdqn.envs.suites.adapter import Source, import_suite, require_id
from jaxdqn.types import Array

IDS = (
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
)
_NO_LIMIT = 2**31 - 1


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return an environment of Craftax.

    Craftax reports a single flag for the end of an episode. The end is a truncation if the episode
    would not have ended without its time limit.

    Raises:
        ValueError: if Craftax is not installed, or the id or an argument is unknown or invalid.
    """
    name = f"craftax:{ident}"
    require_id(name, IDS)
    (module,) = import_suite(name, "craftax.craftax_env")
    env = module.make_craftax_env_from_name(ident, auto_reset=False)
    params, static = env.default_params, env.default_static_params()
    defaults = {**plain_fields(static), **plain_fields(params)}
    values = checked(name, arguments, defaults)
    of_params = {key: value for key, value in values.items() if key in plain_fields(params)}
    params = params.replace(**of_params)
    static = static.replace(**{key: values[key] for key in values if key not in of_params})
    env = type(env)(static)
    endless = params.replace(max_timesteps=_NO_LIMIT)

    def reset(key: Array) -> tuple[Any, Array]:
        obs, state = env.reset_env(key, params)
        return state, obs

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        obs, state, reward, done, _ = env.step_env(key, state, action, params)
        terminated = env.is_terminal(state, endless)
        return state, obs, reward, terminated, done & ~terminated

    return Source(
        reset,
        step,
        num_actions=int(env.num_actions),
        max_episode_steps=int(params.max_timesteps),
        changed=changed(arguments, defaults),
    )
