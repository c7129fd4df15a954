"""Loop of the driver process: its count of gradient steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jaxdqn.actor_learner.driver import Driver
from jaxdqn.config.config import Config


def driver_after(rows: int, steps: int) -> Any:
    """Return a driver without workers that has counted rows and gradient steps."""
    driver = object.__new__(Driver)
    driver._config = Config(num_envs=8, rollout_length=4, gradient_steps=2, batch_size=8)
    driver._origin = 1_024, 100
    driver.streams = SimpleNamespace(rows=rows, steps=steps)  # type: ignore[assignment]
    return driver


def test_the_gradient_steps_owed_are_those_that_the_rows_allow() -> None:
    # Two gradient steps for 32 rows, counted from the end of the warm-up.
    assert driver_after(1_024, 100).owed == 0
    assert driver_after(1_024 + 320, 100).owed == 20
    assert driver_after(1_024 + 320 + 15, 116).owed == 4
    assert driver_after(1_024 + 320 + 16, 116).owed == 5
