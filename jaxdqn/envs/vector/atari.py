"""Atari 2600 games of ALE, stepped by the threads of its vector environment.

An observation is one frame, by default [84, 84] uint8: the pixelwise maximum of the last two of the
four frames of a step, converted to greyscale and resized. The replay stacks frames.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxdqn.envs.vector.arguments import Argument, changed, read_arguments, reject_missing
from jaxdqn.envs.vector.base import HostEnvironment, cpus, time_step
from jaxdqn.errors import known_name, reject
from jaxdqn.types import EnvSpec, TimeStep

PREFIX = "ale:"

PROTOCOLS: dict[str, dict[str, Any]] = {
    "machado": {},
    "classic": {
        "repeat_action_probability": 0.0,
        "full_action_space": False,
        "noop_max": 30,
        "life_loss": True,
    },
}
"""Arguments of each protocol that differ from the defaults. machado: sticky actions, all 18
actions, complete games (Machado et al. 2018, table 3). classic: up to 30 no-op actions at the
start, the minimal action set, and termination at the loss of a life in training (Mnih et al. 2015,
methods)."""

_ARGUMENTS = {
    "repeat_action_probability": Argument(0.25, 0, 1),
    "full_action_space": Argument(True),
    "noop_max": Argument(0, 0),
    "life_loss": Argument(False),
    "use_fire_reset": Argument(False),
    "max_num_frames_per_episode": Argument(108_000, 1),
    "frameskip": Argument(4, 1),
    "maxpool": Argument(True),
    "grayscale": Argument(True),
    "img_height": Argument(84, 1),
    "img_width": Argument(84, 1),
    "num_threads": Argument(0, 0),
}
"""Arguments of ``AtariVectorEnv``, and ``life_loss``: in training, set ``terminated`` at the loss
of a life while the game continues. With ``num_threads=0`` there is one thread for each CPU of the
process."""

_ELSEWHERE = {
    "stack_num": "--frame-stack, which stores each frame once",
    "reward_clipping": "--clip-rewards, which keeps the true scores in the records",
    "episodic_life": "life_loss=true, which does not reset the game",
    "life_loss_info": "life_loss=true",
    "sticky_actions": "repeat_action_probability",
}

_FOR_SEVERAL_PLAYERS = frozenset({"combat", "joust", "maze_craze", "warlords"})
"""ROMs in ale-py that terminate the process when its vector environment loads them."""


def atari_environment(game: str, given: Mapping[str, Any]) -> HostEnvironment:
    """Return an Atari game.

    Args:
      game: name of its ROM, such as ``pong`` or ``space_invaders``.
      given: ``protocol``, one of ``PROTOCOLS``, by default ``machado``; and arguments that override
        the protocol.

    Raises:
      ValueError: if ale-py is not installed, the game or an argument is unknown, or a value is
        invalid.
    """
    name = PREFIX + game
    try:
        from ale_py import roms
    except ModuleNotFoundError:
        reject_missing(name, "ale-py", "host")
    _check_game(game, set(roms.get_all_rom_ids()) - _FOR_SEVERAL_PLAYERS)
    arguments = _arguments(name, given)
    life_loss = arguments.pop("life_loss")
    make = partial(_Vector, game, arguments)
    try:
        env = make(1)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"env={name!r}: cannot be made: {reason}") from error
    frames, skip = arguments["max_num_frames_per_episode"], arguments["frameskip"]
    defaults = {key: argument.default for key, argument in _ARGUMENTS.items()}
    threads = {"num_threads": defaults["num_threads"]}  # does not affect the game
    spec = EnvSpec(
        name=name,
        obs_shape=env.obs_shape,
        obs_dtype=np.dtype(np.uint8),
        num_actions=env.num_actions,
        max_episode_steps=-(-frames // skip),
        arguments=changed({**arguments, "life_loss": life_loss, **threads}, defaults),
        terminates_within_episodes=life_loss,
    )
    env.close()
    return HostEnvironment(
        spec,
        partial(make, life_loss=life_loss),
        make_to_evaluate=make,
        make_drawable=partial(_Drawable, game, arguments),
    )


def _check_game(game: str, known: set[str]) -> None:
    if game in known:
        return
    if game in _FOR_SEVERAL_PLAYERS:
        reject("env", PREFIX + game, "a game for one player")
    # MsPacman, ALE/MsPacman-v5 -> ms_pacman
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", game.removeprefix("ALE/").split("-")[0]).lower()
    near = difflib.get_close_matches(words, sorted(known), n=3, cutoff=0.6)
    nearest = f"; nearest: {', '.join(PREFIX + each for each in near)}"
    reject("env", PREFIX + game, f"a ROM of ale-py{nearest if near else ', such as ale:pong'}")


def _arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(given)
    protocol = given.pop("protocol", "machado")
    if protocol not in PROTOCOLS:
        wanted = known_name("protocol", str(protocol), list(PROTOCOLS))
        raise ValueError(f"env_args='protocol={protocol}': must be {wanted}")
    for argument in given:
        if argument in _ELSEWHERE:
            raise ValueError(f"env_args={argument!r}: must be left out; use {_ELSEWHERE[argument]}")
    known = {**_ARGUMENTS, "protocol": Argument("machado")}
    arguments = read_arguments({**PROTOCOLS[protocol], **given}, known, name)
    del arguments["protocol"]
    return arguments


_SCREEN = {"grayscale": False, "img_height": 210, "img_width": 160}
"""Arguments of a game whose observations are frames of the console's screen, in colour."""


class _Drawable:
    """One game, and the same game with frames in colour.

    ALE's vector environment cannot render. Two games with the same seed and the same actions are
    equal, so the second one draws the first.
    """

    def __init__(self, game: str, arguments: Mapping[str, Any]) -> None:
        self._game = _Vector(game, arguments, 1)
        self._drawn = _Vector(game, {**arguments, **_SCREEN}, 1)

    def reset(self, seed: int) -> TimeStep:
        self._frame = np.asarray(self._drawn.reset(seed).obs)[0]
        return self._game.reset(seed)

    def step(self, actions: np.ndarray) -> TimeStep:
        self._frame = np.asarray(self._drawn.step(actions).obs)[0]
        return self._game.step(actions)

    def render(self) -> np.ndarray:
        return self._frame

    def close(self) -> None:
        self._game.close()
        self._drawn.close()


class _Vector:
    """E games with next-step autoreset."""

    def __init__(
        self, game: str, arguments: Mapping[str, Any], num_envs: int, life_loss: bool = False
    ) -> None:
        from ale_py.vector_env import AtariVectorEnv

        threads = arguments["num_threads"] or cpus()
        envs: Any = AtariVectorEnv(
            game,
            num_envs,
            **{**arguments, "num_threads": min(num_envs, threads)},
            stack_num=1,
            reward_clipping=False,
        )
        self._envs: Any = envs
        self.num_actions = int(envs.single_action_space.n)
        self.obs_shape: tuple[int, ...] = envs.single_observation_space.shape[1:]
        self._life_loss = life_loss
        self._ended = np.zeros(num_envs, bool)
        self._lives = np.zeros(num_envs, np.int32)

    def reset(self, seed: int) -> TimeStep:
        num_envs = len(self._ended)
        # Seeds are int32; a negative seed would mean no seed.
        obs, info = self._envs.reset(seed=(seed + np.arange(num_envs, dtype=np.int64)) % 2**31)
        no = np.zeros(num_envs, bool)
        self._ended, self._lives = no, np.array(info["lives"])
        return self._time_step(obs, no, no, no, ~no)

    def step(self, actions: np.ndarray) -> TimeStep:
        obs, reward, terminated, truncated, info = self._envs.step(actions.astype(np.int32))
        # This step has reset the games that ended at the previous step.
        first, self._ended = self._ended, terminated | truncated
        if self._life_loss:
            lost = (info["lives"] < self._lives) & ~first
            terminated, self._lives = terminated | lost, np.array(info["lives"])
        return self._time_step(obs, reward, terminated, truncated & ~terminated, first)

    def close(self) -> None:
        self._envs = None  # ends its threads

    def _time_step(
        self, obs: Any, reward: Any, terminated: Any, truncated: Any, first: Any
    ) -> TimeStep:
        # Remove the axis of one frame.
        return time_step(obs[:, 0], reward, terminated, truncated, first, np.dtype(np.uint8))
