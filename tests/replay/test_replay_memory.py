"""Memory of a replay: known before allocation, and rejected if it is not available."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import psutil
import pytest

from jaxdqn.replay import check_memory, make_sequence, make_uniform, replay_bytes
from jaxdqn.types import Row


def example_row(shape: tuple[int, ...], dtype: Any, extras: Any = ()) -> Row:
    return Row(
        obs=jnp.zeros(shape, dtype),
        first=jnp.asarray(False),
        action=jnp.int32(0),
        reward=jnp.float32(0),
        terminated=jnp.asarray(False),
        truncated=jnp.asarray(False),
        extras=extras,
    )


class FakeDevice:
    """A device that reports its memory like an accelerator."""

    def __init__(self, stats: dict[str, int] | None) -> None:
        self.stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


@pytest.mark.parametrize("kind", ["float", "uint8", "bool", "extras", "sequence"])
def test_replay_bytes_are_the_bytes_allocated(kind: str) -> None:
    shared = {"num_envs": 3, "rows_per_env": 40, "rows_per_add": 4, "batch_size": 8}
    if kind == "sequence":
        replay = make_sequence(**shared, length=5, stride=3)
    else:
        replay = make_uniform(**shared, n_step=3, frame_stack=2)
    row = {
        "float": example_row((4,), jnp.float32),
        "uint8": example_row((5, 7), jnp.uint8),
        "bool": example_row((3, 5), jnp.bool_),
        "extras": example_row((4,), jnp.float32, {"carry": jnp.zeros((2, 9)), "p": jnp.zeros(())}),
        "sequence": example_row((9,), jnp.bool_),
    }[kind]
    allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(replay.init(row)))
    assert replay_bytes(replay, row) == allocated


def test_extras_of_sequences_take_memory_for_their_starts_only() -> None:
    shared = {"num_envs": 3, "rows_per_env": 40, "rows_per_add": 4, "batch_size": 8, "length": 5}
    row = example_row((9,), jnp.bool_, {"carry": jnp.zeros((2, 9))})
    carry = 2 * 9 * 4
    for stride, starts in ((1, 40), (4, 10), (7, 6), (30, 2)):
        with_carry = replay_bytes(make_sequence(**shared, stride=stride), row)
        without = replay_bytes(make_sequence(**shared, stride=stride), row._replace(extras=()))
        assert with_carry - without == 3 * starts * carry


def test_replay_bytes_allocates_nothing() -> None:
    replay = make_uniform(num_envs=256, rows_per_env=2**20, rows_per_add=1, batch_size=32)
    frame = example_row((84, 84), jnp.uint8)
    total = replay_bytes(replay, frame)
    frames = 256 * 2**20 * 84 * 84
    assert frames < total < 1.01 * frames  # each frame is stored once


def test_a_boolean_observation_takes_one_byte_for_eight() -> None:
    shared = {"num_envs": 10, "rows_per_env": 100, "rows_per_add": 1, "batch_size": 8}
    replay = make_uniform(**shared)
    ten, none = (replay_bytes(replay, example_row(s, jnp.bool_)) for s in ((75,), (0,)))
    assert ten - none == 10 * 100 * 10


def numbers_in(error: pytest.ExceptionInfo[ValueError]) -> set[int]:
    return {int(digits.replace(",", "")) for digits in re.findall(r"\d[\d,]*", str(error.value))}


def test_a_request_above_the_free_memory_of_the_device_is_rejected_with_both_numbers() -> None:
    device = FakeDevice({"bytes_limit": 5_000_000, "bytes_in_use": 1_234_567})
    check_memory(3_765_433, device)
    with pytest.raises(ValueError, match="bytes") as error:
        check_memory(3_765_434, device)
    assert {3_765_434, 3_765_433} <= numbers_in(error)


@pytest.mark.parametrize("stats", [None, {}], ids=str)
def test_a_device_that_reports_no_memory_uses_that_of_the_host(
    stats: dict[str, int] | None,
) -> None:
    check_memory(psutil.virtual_memory().available // 2, FakeDevice(stats))
    with pytest.raises(ValueError, match="bytes") as error:
        check_memory(10**17, FakeDevice(stats))
    assert 10**17 in numbers_in(error)


def test_the_first_device_is_the_default() -> None:
    check_memory(1)
    with pytest.raises(ValueError, match="bytes") as error:
        check_memory(10**17)
    assert 10**17 in numbers_in(error)


def test_devices_that_share_the_memory_of_the_host_must_fit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jaxdqn.replay.memory.free_bytes", lambda device=None: 4_003)
    check_memory(1_000, FakeDevice(None), devices=4)
    with pytest.raises(ValueError, match="on each of 4 devices, which share") as error:
        check_memory(1_001, FakeDevice(None), devices=4)
    assert {1_001, 4_003, 1_000} <= numbers_in(error)  # requested, free and maximum


def test_devices_with_separate_memory_are_checked_one_by_one() -> None:
    device = FakeDevice({"bytes_limit": 1_000, "bytes_in_use": 0})
    check_memory(1_000, device, devices=4)
    with pytest.raises(ValueError, match="on each device"):
        check_memory(1_001, device, devices=4)


def test_writing_then_sampling_copies_no_ring() -> None:
    """Compile add and sample at two capacities: both need the same temporary memory."""
    memory = {}
    for capacity in (10_000, 1_000_000):
        replay = make_uniform(
            num_envs=1,
            rows_per_env=capacity,
            rows_per_add=1,
            batch_size=32,
            n_step=3,
            frame_stack=4,
        )
        row = example_row((4, 4), jnp.uint8)
        state = jax.eval_shape(replay.init, row)
        rows = jax.tree.map(lambda leaf: jnp.zeros((1, 1, *leaf.shape), leaf.dtype), row)

        def iterate(state: Any, rows: Row, key: Any, replay: Any = replay) -> Any:
            state = replay.add(state, rows)
            return state, replay.sample(key, state, jnp.float32(0.9))[0]

        compiled = jax.jit(iterate, donate_argnums=0).lower(state, rows, jax.random.key(0))
        memory[capacity] = compiled.compile().memory_analysis()
        assert memory[capacity].alias_size_in_bytes >= replay_bytes(replay, row)
    small, large = (memory[capacity].temp_size_in_bytes for capacity in sorted(memory))
    assert large - small < 10_000
