"""Sticky actions (Machado et al. 2018, section 5.1) of environments on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import reject
from jaxdqn.types import TimeStep

_OWN_ARGUMENT = {
    "ale:": "repeat_action_probability",
    "gymnasium:ale_py:": "repeat_action_probability",
    "gymnasium:ALE/": "repeat_action_probability",
    "gymnasium:MinAtar/": "sticky_action_prob",
}
"""Argument for sticky actions of the simulators that have one, by prefix of the name."""
_STREAM = 0x737469
"""Second word of the seed, so that repetitions and environments have different random numbers."""


def with_sticky_actions_on_host(
    environment: HostEnvironment, probability: float
) -> HostEnvironment:
    """Wrap an environment so that it repeats the previous action with a given probability.

    As on the device (``jaxdqn.envs.sticky``), the repeated action is 0 at the first step of an
    episode, an illegal action is never repeated, and rows of replay store the action of the agent.

    Args:
      environment: environment for training, evaluation and drawing.
      probability: at least 0 and below 1. If ``environment`` has this probability already, it is
        returned unchanged.

    Raises:
      ValueError: if the simulator has an argument for sticky actions.
    """
    if probability in (0, environment.sticky_actions):
        return environment
    name = environment.spec.name
    for prefix, argument in _OWN_ARGUMENT.items():
        if name.startswith(prefix):
            reject("sticky_actions", probability, f"0.0 with env={name!r}, which has its own; use "
                   f"--env-arg {argument}={probability:g}")  # fmt: skip

    def wrapped(make: Any) -> Any:
        if make is None:
            return None
        return lambda *num_envs: StickyEnvironments(make(*num_envs), probability)

    return environment._replace(
        make=wrapped(environment.make),
        make_drawable=wrapped(environment.make_drawable),
        make_to_evaluate=wrapped(environment.make_to_evaluate),
        sticky_actions=probability,
    )


class StickyEnvironments:
    """A ``VectorEnvironment`` that repeats previous actions.

    Args:
      envs: E environments.
      probability: probability that an environment repeats its last executed action.
    """

    def __init__(self, envs: Any, probability: float) -> None:
        self._envs, self._probability = envs, probability
        self.close = envs.close
        self._previous: Any = None
        self._legal: Any = ()

    def reset(self, seed: int) -> TimeStep:
        """Start an episode in every environment, and seed the repetitions."""
        self._random = np.random.default_rng((seed, _STREAM))
        timestep = self._envs.reset(seed)
        self._previous = np.zeros(len(np.asarray(timestep.first)), np.int32)
        self._legal = timestep.legal
        return timestep

    def step(self, actions: np.ndarray) -> TimeStep:
        """Step every environment with the action [E], or with the previous one."""
        repeats = self._random.random(len(actions)) < self._probability
        if not isinstance(self._legal, tuple):
            repeats &= self._legal[np.arange(len(actions)), self._previous]
        executed = np.where(repeats, self._previous, actions).astype(np.int32)
        timestep = self._envs.step(executed)
        self._previous = np.where(timestep.first, np.int32(0), executed)
        self._legal = timestep.legal
        return timestep

    def render(self) -> np.ndarray:
        """Return a frame of a drawable environment, uint8 [height, width, 3]."""
        return self._envs.render()
