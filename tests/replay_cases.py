"""Shapes of replays, shared by the tests of all replays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from tests.oracles import Stream, random_pieces, rows_from_streams, stream_of


class Case(NamedTuple):
    """Static shapes of a replay: E, T, K, N, S and the contents of a row."""

    num_envs: int
    rows_per_env: int
    rows_per_add: int
    n_step: int
    frame_stack: int
    obs_shape: tuple[int, ...]
    obs_dtype: Any
    with_extras: bool = False


# Cases named "smallest" have T = N + S + K + 1 (or the next multiple of K).
CASES = {
    "one_step": Case(1, 8, 1, 1, 1, (3,), np.float32, True),
    "pixels": Case(3, 12, 1, 1, 1, (2, 3), np.uint8),
    "bits": Case(3, 12, 2, 3, 1, (11,), np.bool_),
    "five_step": Case(1, 12, 1, 5, 1, (2,), np.float32),
    "stacked_bits_k4": Case(3, 12, 4, 3, 2, (3, 5), np.bool_, True),
    "atari_like": Case(1, 16, 4, 5, 4, (3, 2), np.uint8),
    "stacked_k2": Case(3, 10, 2, 1, 4, (2,), np.float32),
    "smallest_bits": Case(1, 7, 1, 1, 4, (13,), np.bool_),
    "smallest_stacked": Case(3, 9, 1, 3, 4, (2, 2), np.uint8),
    "smallest_k2": Case(1, 10, 2, 5, 2, (2,), np.float32, True),
    "smallest_k4": Case(3, 12, 4, 3, 4, (4,), np.int32),
}


def oracle_example(rows: list[Any]) -> Any:
    """Return an example row without leading axes."""
    return jax.tree.map(lambda leaf: leaf[0], rows[0])


def rows_to_feed(case: Case, wraps: int) -> int:
    """Return the rows per environment that wrap the ring ``wraps`` times."""
    return wraps * case.rows_per_env // case.rows_per_add * case.rows_per_add


def random_streams(case: Case, rng: np.random.Generator, *, wraps: int, skip: int) -> list[Stream]:
    """Return a stream for each environment, with every kind of ending."""
    return [
        stream_of(
            random_pieces(rng, count=30, longest=2 * case.n_step + 3),
            length=rows_to_feed(case, wraps=wraps),
            env=env,
            skip=skip,
        )
        for env in range(case.num_envs)
    ]


class SequenceCase(NamedTuple):
    """Static shapes of a replay of sequences: E, T, K, L, stride and the contents of a row."""

    num_envs: int
    rows_per_env: int
    rows_per_add: int
    length: int
    stride: int
    obs_shape: tuple[int, ...]
    obs_dtype: Any

    def sizes(self) -> dict[str, int]:
        """Return the arguments of ``make_sequence`` except the size of a batch."""
        return {**self.geometry(), "rows_per_add": self.rows_per_add}

    def geometry(self) -> dict[str, int]:
        """Return the arguments of the twin."""
        names = ("num_envs", "rows_per_env", "length", "stride")
        return {name: getattr(self, name) for name in names}


# Cases named "smallest" have the least T for their other sizes.
SEQUENCE_CASES = {
    "anywhere": SequenceCase(1, 8, 1, 3, 1, (2,), np.float32),
    "bits_k2": SequenceCase(3, 12, 2, 5, 4, (11,), np.bool_),
    "smallest": SequenceCase(2, 13, 1, 8, 4, (3, 2), np.uint8),
    "not_a_multiple": SequenceCase(3, 17, 1, 4, 3, (2,), np.float32),
    "stride_above_length": SequenceCase(2, 16, 2, 3, 5, (2,), np.float32),
    "stride_below_k4": SequenceCase(3, 16, 4, 1, 3, (3, 5), np.bool_),
    "one_start": SequenceCase(2, 9, 1, 1, 7, (2,), np.float32),
}


def sequence_rows(case: SequenceCase, rng: np.random.Generator, *, wraps: int) -> list[Any]:
    """Return rows with extras that wrap the ring ``wraps`` times."""
    streams = [
        stream_of(
            random_pieces(rng, count=30, longest=6),
            length=wraps * case.rows_per_env,
            env=env,
            skip=env,
        )
        for env in range(case.num_envs)
    ]
    return rows_from_streams(
        streams, obs_shape=case.obs_shape, obs_dtype=case.obs_dtype, with_extras=True
    )
