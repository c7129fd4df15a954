"""Invalid sizes are rejected at construction, with name, value and constraint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jaxdqn.replay import make_sequence, make_uniform
from jaxdqn.types import Replay

UNIFORM = {
    "num_envs": 2,
    "rows_per_env": 12,
    "rows_per_add": 2,
    "batch_size": 4,
    "n_step": 3,
    "frame_stack": 2,
}
SEQUENCE = {"num_envs": 2, "rows_per_env": 12, "rows_per_add": 2, "batch_size": 4, "length": 5}


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("value", [0, -1])
def test_uniform_rejects_sizes_below_one(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value}: must be at least 1"):
        make_uniform(**{**UNIFORM, name: value})


@pytest.mark.parametrize("name", SEQUENCE)
def test_sequence_rejects_sizes_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0: must be at least 1"):
        make_sequence(**{**SEQUENCE, name: 0})


@pytest.mark.parametrize(
    ("rows_per_env", "rows_per_add", "n_step", "frame_stack"),
    [(3, 1, 1, 1), (6, 2, 3, 1), (8, 4, 3, 1), (8, 1, 3, 4), (8, 1, 6, 1)],
)
def test_uniform_rejects_a_ring_no_longer_than_its_reach(
    rows_per_env: int, rows_per_add: int, n_step: int, frame_stack: int
) -> None:
    reach = n_step + frame_stack + rows_per_add
    assert rows_per_env <= reach
    arguments = {
        **UNIFORM,
        "rows_per_env": rows_per_env,
        "rows_per_add": rows_per_add,
        "n_step": n_step,
        "frame_stack": frame_stack,
    }
    with pytest.raises(ValueError, match=rf"^rows_per_env={rows_per_env}: must be .*\b{reach}\b"):
        make_uniform(**arguments)


@pytest.mark.parametrize(
    ("rows_per_env", "rows_per_add", "n_step", "frame_stack"),
    [(4, 1, 1, 1), (8, 2, 3, 1), (12, 4, 3, 1), (9, 1, 3, 4)],
)
def test_uniform_accepts_the_shortest_ring_above_its_reach(
    rows_per_env: int, rows_per_add: int, n_step: int, frame_stack: int
) -> None:
    make_uniform(
        num_envs=1,
        rows_per_env=rows_per_env,
        rows_per_add=rows_per_add,
        batch_size=1,
        n_step=n_step,
        frame_stack=frame_stack,
    )


def test_sequence_rejects_a_ring_no_longer_than_a_sequence() -> None:
    with pytest.raises(ValueError, match=r"^rows_per_env=4: must be above"):
        make_sequence(**{**SEQUENCE, "rows_per_env": 4})


@pytest.mark.parametrize(
    ("make", "arguments"), [(make_uniform, UNIFORM), (make_sequence, SEQUENCE)]
)
def test_the_length_of_a_ring_must_be_a_multiple_of_an_add(
    make: Callable[..., Replay], arguments: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"^rows_per_env=13: must be a multiple of rows_per_add=2"):
        make(**{**arguments, "rows_per_env": 13})
