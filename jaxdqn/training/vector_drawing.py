"""Rendering of episodes of environments on the host, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxdqn.envs.vector.base import DrawableEnvironment, HostEnvironment
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.training.evaluation import LONGEST_EPISODE
from jaxdqn.training.keys import seed_of
from jaxdqn.training.vector_evaluation import PlayPrograms, make_play
from jaxdqn.types import Agent, Array, Params


def play_drawn_episode(
    agent: Agent,
    environment: HostEnvironment,
    params: Params,
    key: Array,
    *,
    frame_stack: int = 1,
    max_steps: int = LONGEST_EPISODE,
) -> Iterator[tuple[np.ndarray, float]]:
    """Play one greedy episode and yield a frame for each state.

    Args:
        agent: computes the Q-values.
        environment: environment with ``make_drawable``.
        params: parameters of the agent.
        key: seed of the environment; consumed.
        frame_stack: S, as in training.
        max_steps: environment steps after which the episode is cut.

    Yields:
        The frame, uint8 [height, width, 3], and the reward received on reaching it (0 for the
        first).

    Raises:
        EnvironmentFailed: if the environment fails or cannot render.
    """
    drawable: list[DrawableEnvironment] = []

    def make(num_envs: int) -> DrawableEnvironment:
        assert environment.make_drawable is not None
        drawable.append(environment.make_drawable())
        return drawable[-1]

    play_once = PlayPrograms(*map(jax.jit, make_play(agent, 1, frame_stack=frame_stack)))
    envs = CheckedEnvironments(environment._replace(make=make), 1)
    greedy = np.float32(0)
    try:
        timestep = envs.reset(seed_of(key))
        yield _frame(drawable[0], environment), 0.0
        play = play_once.begin(params, key, timestep, greedy)
        for count in range(1, min(max_steps, environment.spec.max_episode_steps or max_steps) + 1):
            timestep = envs.step(np.asarray(play.actions))
            if timestep.first[0]:
                return
            yield _frame(drawable[0], environment), float(timestep.reward[0])
            # Losing a life may set ``terminated`` within an episode, so it is not the end here.
            within = environment.spec.terminates_within_episodes
            if (timestep.terminated[0] and not within) or timestep.truncated[0]:
                return
            play = play_once.advance(params, key, np.int32(count), play, timestep, greedy)
    finally:
        envs.close()


def _frame(drawable: DrawableEnvironment, environment: HostEnvironment) -> Any:
    try:
        return drawable.render()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EnvironmentFailed(
            f"env={environment.spec.name!r}: cannot be drawn: {reason}"
        ) from error
