"""Slow simulator for Gymnasium: CartPole whose steps take ten milliseconds.

Its name is ``gymnasium:benchmarks.slow_simulator:SlowCartPole-v0``.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

STEP_SECONDS = 0.01


class SlowCartPole(CartPoleEnv):
    """CartPole that sleeps in every step, as if it waited for another program."""

    def step(self, action: Any) -> Any:
        """Sleep, then step."""
        time.sleep(STEP_SECONDS)
        return super().step(action)


gymnasium.register(
    "SlowCartPole-v0", entry_point="benchmarks.slow_simulator:SlowCartPole", max_episode_steps=50
)
