"""Invalid sizes are rejected at construction, with name, value and constraint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jaxdqn.config.config import Config
from jaxdqn.replay import make_prioritized_sequence, make_sequence, make_uniform
from jaxdqn.types import Replay

UNIFORM = {
    "num_envs": 2,
    "rows_per_env": 12,
    "rows_per_add": 2,
    "batch_size": 4,
    "n_step": 3,
    "frame_stack": 2,
}
SEQUENCE = {
    "num_envs": 2,
    "rows_per_env": 12,
    "rows_per_add": 2,
    "batch_size": 4,
    "length": 5,
    "stride": 3,
}


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


@pytest.mark.parametrize("make", [make_sequence, make_prioritized_sequence])
def test_sequences_reject_a_ring_that_may_have_no_valid_start(make: Callable[..., Replay]) -> None:
    shared = {**SEQUENCE, "rows_per_add": 1}
    with pytest.raises(ValueError, match=r"^rows_per_env=8: must be above 8"):
        make(**{**shared, "rows_per_env": 8})
    make(**{**shared, "rows_per_env": 9})


@pytest.mark.parametrize(
    ("make", "arguments"), [(make_uniform, UNIFORM), (make_sequence, SEQUENCE)]
)
def test_the_length_of_a_ring_must_be_a_multiple_of_an_add(
    make: Callable[..., Replay], arguments: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"^rows_per_env=13: must be a multiple of rows_per_add=2"):
        make(**{**arguments, "rows_per_env": 13})


@pytest.mark.parametrize(("num_envs", "rows_per_add"), [(3072, 2), (1, 1), (4096, 8)])
def test_positions_in_the_queue_of_starts_fit_in_int32(num_envs: int, rows_per_add: int) -> None:
    largest = (2**30 // num_envs - rows_per_add) // rows_per_add * rows_per_add
    sizes = {"num_envs": num_envs, "rows_per_add": rows_per_add}
    make_uniform(**{**UNIFORM, **sizes, "rows_per_env": largest})
    # Tail, count and cumulative sum, each at its largest.
    assert 2 * (largest + rows_per_add) * num_envs <= 2**31
    wanted = r"must be at most 2\*\*30$"
    with pytest.raises(ValueError, match=wanted):
        make_uniform(**{**UNIFORM, **sizes, "rows_per_env": largest + rows_per_add})


def test_a_configuration_with_too_many_rows_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match=r"^replay_capacity=1073737728: must be at most"):
        Config(num_envs=3072, rollout_length=2, replay_capacity=1_073_737_728)
