"""Breakdown of the time of a process by use."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxdqn.actor_learner.time_use import Compiled, Limits, TimeUse


def test_uses_of_time_do_not_overlap() -> None:
    times = TimeUse()
    with times.spent("messages"):
        time.sleep(0.01)
        with times.spent("learn") as spent:
            time.sleep(0.05)
    seconds = times.seconds()
    assert seconds["learn"] == spent.seconds >= 0.05
    assert seconds["messages"] >= 0.01
    # Counted twice, the seconds of learning would not fit.
    assert sum(seconds.values()) <= times.wall


def test_compilation_is_no_part_of_the_use_in_which_it_happens() -> None:
    times, traced = TimeUse(), []

    def double(x: Any) -> Any:
        traced.append(x.shape)
        time.sleep(0.4)  # tracing takes this long
        return 2 * x

    function = Compiled(double, times)
    for size in (2, 2, 3, 2):
        with times.spent("learn") as spent:
            jax.block_until_ready(function(jnp.ones(size)))
        assert spent.seconds < 0.4
    assert traced == [(2,), (3,)]
    assert times.seconds()["compile"] >= 0.8


@pytest.mark.parametrize(
    ("actors", "learner", "name"), [(2.0, 1.0, "actors"), (1.0, 2.0, "learner")]
)
def test_the_slower_part_limits_a_run(actors: float, learner: float, name: str) -> None:
    limits = Limits()
    limits.by_actors, limits.by_learner = actors, learner
    assert limits.name == name
