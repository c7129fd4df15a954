"""Octax, arcade games on an emulated CHIP-8, ``octax:ID``.

Arguments: ``max_num_steps_per_episodes``, ``frame_skip``, ``instruction_frequency`` and ``fps``. An
observation [frames, width, height] becomes [height, width, frames] bool. Every episode starts in
the same state.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdqn.envs.arguments import changed, checked
from jaxdqn.envs.suites.adapter import Source, import_suite, require_id
from jaxdqn.types import Array

ARGUMENTS = ("max_num_steps_per_episodes", "frame_skip", "instruction_frequency", "fps")
"""Arguments of ``OctaxEnv`` that its games do not set."""


def source(ident: str, arguments: Mapping[str, Any]) -> Source:
    """Return a game of Octax.

    Raises:
        ValueError: if Octax is not installed, or the id or an argument is unknown or invalid.
    """
    name = f"octax:{ident}"
    environments, rendering = import_suite(name, "octax.environments", "octax.rendering")
    require_id(name, _games(environments))
    env, _ = environments.create_environment(ident)
    defaults = {argument: getattr(env, argument) for argument in ARGUMENTS}
    values = checked(name, arguments, defaults)
    if values:
        env, _ = environments.create_environment(ident, **values)

    def reset(key: Array) -> tuple[Any, Array]:
        state, obs, _ = env.reset(key)
        return state, obs

    def step(key: Array, state: Any, action: Array) -> tuple[Any, ...]:
        state, obs, reward, terminated, truncated, _ = env.step(state, action)
        return state, obs, reward, terminated, truncated

    return Source(
        reset,
        step,
        num_actions=int(env.num_actions),
        max_episode_steps=int(env.max_num_steps_per_episodes),
        view=lambda obs: jnp.transpose(obs, (2, 1, 0)),
        render=lambda state: np.asarray(rendering.chip8_display_to_rgb(state.display)),
        changed=changed(arguments, defaults),
    )


def _games(environments: Any) -> list[str]:
    """Return the name of each game; those of its levels, such as ``cavern1``, if it has levels."""
    modules = {module.name for module in pkgutil.iter_modules(environments.__path__)}
    folders = (parent / "roms" for parent in Path(environments.__file__).parents)
    files = next((list(folder.glob("*.ch8")) for folder in folders if folder.is_dir()), [])
    matches = [re.fullmatch(r"(\w+?)\d+", file.stem) for file in files]
    levels = {match[0]: match[1] for match in matches if match and match[1] in modules}
    return sorted((modules - set(levels.values())) | set(levels))
