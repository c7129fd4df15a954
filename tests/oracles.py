"""Slow NumPy twins of the replay, and the streams of rows for comparing them.

The twins keep the complete history in lists, and find every answer by absolute time. They share
no code and no algorithm with the ring that they check.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.types import Batch, Row

ENDINGS = ("terminated", "truncated", "both", "broken", "life_loss", "flag_without_end")
"""The endings of a piece of a stream.

``terminated``, ``truncated`` and ``both`` append the final observation, whose successor has
``first`` (next-step autoreset). ``broken`` stops without a flag and without a final observation.
``life_loss`` sets ``terminated`` and ``flag_without_end`` sets ``truncated``, and the episode
continues without ``first``.
"""

INVALID_REWARD = 1e6
"""Reward of invalid rows: it is visible in any return that reads one."""


class Piece(NamedTuple):
    """A stretch of one environment's stream: ``steps`` environment steps, then an ending."""

    steps: int
    ending: str


class Stream(NamedTuple):
    """One environment's flags and rewards, leaves [time]."""

    first: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    reward: np.ndarray


def stream_of(pieces: Iterable[Piece], *, length: int, env: int = 0, skip: int = 0) -> Stream:
    """Concatenate pieces, cycling through them, to a stream of ``length`` rows.

    The first ``skip`` rows are dropped: the stream then starts inside an episode.

    Rewards cycle, so that consecutive rows and different environments have different ones. Rows
    that are invalid by contract carry garbage.
    """
    rows = itertools.islice(_rows_of(itertools.cycle(pieces)), skip, skip + length)
    first, terminated, truncated, invalid = (np.array(flags) for flags in zip(*rows, strict=True))
    time = np.arange(length)
    reward = np.where(invalid, INVALID_REWARD, (time * 5 + env * 3) % 17 - 6).astype(np.float32)
    garbage = time % 3 != 0
    return Stream(
        first=first,
        terminated=np.where(invalid, garbage, terminated),
        truncated=np.where(invalid, ~garbage, truncated),
        reward=reward,
    )


def _rows_of(pieces: Iterator[Piece]) -> Iterator[tuple[bool, bool, bool, bool]]:
    """Yield (first, terminated, truncated, invalid) without end."""
    opens = True
    for piece in pieces:
        for step in range(piece.steps):
            last = step == piece.steps - 1
            terminated = last and piece.ending in ("terminated", "both", "life_loss")
            truncated = last and piece.ending in ("truncated", "both", "flag_without_end")
            yield opens and step == 0, terminated, truncated, last and piece.ending == "broken"
        if piece.ending in ("terminated", "truncated", "both"):
            yield False, False, False, True
        opens = piece.ending not in ("life_loss", "flag_without_end")


def random_pieces(rng: np.random.Generator, *, count: int, longest: int) -> list[Piece]:
    """Draw random pieces: half of them of one or two steps, the others of up to ``longest``."""
    short = rng.integers(1, 3, size=count)
    long = rng.integers(1, longest + 1, size=count)
    steps = np.where(rng.random(count) < 0.5, short, long)
    endings = rng.choice(len(ENDINGS), size=count)
    return [Piece(int(n), ENDINGS[e]) for n, e in zip(steps, endings, strict=True)]


def encode(time: int, env: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Encode (time, env) in an array that is never all zero, to detect confused rows.

    The array is unique for every time below 400 and env below 4, for any dtype, if the shape has
    at least 11 elements (boolean) or 2 (others).
    """
    size = int(np.prod(shape))
    code = time * 4 + env + 1
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        pattern = np.array([(code >> bit) & 1 for bit in range(11)])
    elif dtype == np.uint8:
        pattern = np.array([code % 256, code // 256 % 256, 255 - code % 256])
    else:
        pattern = np.array([code, -code])
    values = np.resize(pattern, size)
    if dtype.kind == "f":
        values = values + np.arange(size) / 8
    return values.astype(dtype).reshape(shape)


def rows_from_streams(
    streams: list[Stream], *, obs_shape: tuple[int, ...], obs_dtype: Any, with_extras: bool
) -> list[Row]:
    """Return the rows of all environments: one ``Row`` with leaves [E, ...] for each time."""
    rows = []
    for time in range(len(streams[0].first)):
        codes = [time * 4 + env + 1 for env in range(len(streams))]
        extras = {
            "carry": np.array([[code, -code] for code in codes], np.float32),
            "prob": np.array([1 / code for code in codes], np.float32),
        }
        rows.append(
            Row(
                obs=np.stack(
                    [encode(time, env, obs_shape, obs_dtype) for env in range(len(streams))]
                ),
                first=np.array([stream.first[time] for stream in streams]),
                action=np.array(codes, np.int32),
                reward=np.array([stream.reward[time] for stream in streams], np.float32),
                terminated=np.array([stream.terminated[time] for stream in streams]),
                truncated=np.array([stream.truncated[time] for stream in streams]),
                extras=extras if with_extras else (),
            )
        )
    return rows


class HistoryOracle:
    """All rows ever added, and those that a ring of ``rows_per_env`` rows still holds."""

    def __init__(self, *, num_envs: int, rows_per_env: int) -> None:
        self.num_envs = num_envs
        self.rows_per_env = rows_per_env
        self.history: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        """Append rows with leaves [E, ...]."""
        self.history.extend(rows)

    @property
    def newest(self) -> int:
        return len(self.history) - 1

    @property
    def oldest(self) -> int:
        return max(0, len(self.history) - self.rows_per_env)

    @property
    def evicted(self) -> bool:
        return self.oldest > 0

    def row(self, time: int, env: int) -> Row:
        """Return a row of one environment, without leading axes; assert that it is stored."""
        assert self.oldest <= time <= self.newest, f"the oracle reads time {time}, not stored"
        return jax.tree.map(lambda leaf: leaf[env], self.history[time])

    def is_start(self, time: int, env: int) -> bool:
        raise NotImplementedError

    def index(self, time: int, env: int) -> int:
        """Return the flat ring index of a stored row."""
        return time % self.rows_per_env * self.num_envs + env

    def valid_starts(self) -> dict[int, tuple[int, int]]:
        """Return the (time, env) of every valid start, by flat ring index."""
        stored = range(self.oldest, self.newest + 1)
        return {
            self.index(time, env): (time, env)
            for time in stored
            for env in range(self.num_envs)
            if self.is_start(time, env)
        }


class TransitionOracle(HistoryOracle):
    """N-step transitions with stacked frames."""

    def __init__(
        self, *, num_envs: int, rows_per_env: int, n_step: int = 1, frame_stack: int = 1
    ) -> None:
        super().__init__(num_envs=num_envs, rows_per_env=rows_per_env)
        self.n_step = n_step
        self.frame_stack = frame_stack

    def is_start(self, time: int, env: int) -> bool:
        if time > self.newest - self.n_step or self.row(time + 1, env).first:
            return False
        return not self.evicted or time >= self.oldest + self.frame_stack - 1

    def stack(self, time: int, env: int) -> np.ndarray:
        """Return the observation at ``time``, [O], or [O, S] with the newest last."""
        newest = self.row(time, env)
        if self.frame_stack == 1:
            return newest.obs
        frames = [newest.obs]
        opened = bool(newest.first)
        for back in range(1, self.frame_stack):
            if opened or time - back < 0:
                frames.append(np.zeros_like(newest.obs))
                continue
            row = self.row(time - back, env)
            frames.append(row.obs)
            opened = bool(row.first)
        return np.stack(frames[::-1], axis=-1)

    def transition(self, time: int, env: int, gamma: float) -> Batch:
        """Return one transition without a batch axis; sums are in float64."""
        assert self.is_start(time, env)
        total, weight = 0.0, 1.0
        at = time
        while True:
            row = self.row(at, env)
            total += weight * float(row.reward)
            weight *= gamma
            at += 1
            if row.terminated:
                weight = 0.0
                break
            if at - time == self.n_step or self.row(at + 1, env).first:
                break
        start = self.row(time, env)
        return Batch(
            obs_tm1=self.stack(time, env),
            a_tm1=start.action,
            r_t=np.float32(total),
            discount_t=np.float32(weight),
            obs_t=self.stack(at, env),
            extras_tm1=start.extras,
        )

    def steps(self, time: int, env: int) -> list[tuple[Row, np.ndarray]]:
        """Return, for each step of a return, the row that it starts from, and the observation after
        it."""
        assert self.is_start(time, env)
        steps = []
        for at in range(time, time + self.n_step):
            steps.append((self.row(at, env), self.stack(at + 1, env)))
            if self.row(at, env).terminated:
                break
            if at + 1 - time < self.n_step and self.row(at + 2, env).first:
                break
        return steps

    def batch(self, indices: np.ndarray, gamma: float) -> Batch:
        """Return the transitions that start at flat ring indices [B], leaves [B, ...]."""
        starts = self.valid_starts()
        unique, inverse = np.unique(indices, return_inverse=True)
        transitions = [self.transition(*starts[int(index)], gamma) for index in unique]
        return jax.tree.map(lambda leaf: leaf[inverse], stack_trees(transitions))


class SequenceOracle(HistoryOracle):
    """Sequences of consecutive rows, which may cross boundaries of episodes.

    They start at the ring's slots that are multiples of ``stride``; these have separate indices.
    """

    def __init__(self, *, num_envs: int, rows_per_env: int, length: int, stride: int = 1) -> None:
        super().__init__(num_envs=num_envs, rows_per_env=rows_per_env)
        self.length = length
        self.stride = stride

    def is_start(self, time: int, env: int) -> bool:
        at_start = time % self.rows_per_env % self.stride == 0
        return at_start and time + self.length - 1 <= self.newest

    def index(self, time: int, env: int) -> int:
        """Return the flat index of a start."""
        return time % self.rows_per_env // self.stride * self.num_envs + env

    def sequence(self, time: int, env: int) -> Row:
        """Return one sequence, leaves [L, ...], with the extras of its first row."""
        assert self.is_start(time, env)
        rows = [self.row(time + step, env) for step in range(self.length)]
        stacked = stack_trees([row._replace(extras=()) for row in rows])
        return stacked._replace(extras=rows[0].extras)

    def batch(self, indices: np.ndarray) -> Row:
        """Return the sequences that start at flat indices [B], leaves [B, L, ...]."""
        starts = self.valid_starts()
        return stack_trees([self.sequence(*starts[int(index)]) for index in indices])


class Priorities(HistoryOracle):
    """Mixin: a priority for each valid start, by (time, env)."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.priorities: dict[tuple[int, int], float] = {}
        self.max_priority = 1.0

    def add(self, rows: list[Row]) -> None:
        super().add(rows)
        valid = self.valid_starts().values()
        # New valid starts enter with the maximum priority so far.
        self.priorities = {at: self.priorities.get(at, self.max_priority) for at in valid}

    def update(self, drawn: list[tuple[int, int]], priorities: np.ndarray) -> None:
        for at, priority in zip(drawn, priorities, strict=True):
            if at in self.priorities:
                self.priorities[at] = float(priority)
                self.max_priority = max(self.max_priority, float(priority))

    def leaves(self) -> np.ndarray:
        """Return the priorities of all leaves, by flat index."""
        last = self.index(self.rows_per_env - 1, self.num_envs - 1)
        leaves = np.zeros(last + 1)
        for (time, env), priority in self.priorities.items():
            leaves[self.index(time, env)] = priority
        return leaves


def live_starts(state: Any) -> list[int]:
    """Return the flat indices in the FIFO queue of valid starts, oldest first."""
    starts = np.asarray(state.starts)
    tail, count = int(state.tail), int(state.count)
    assert 0 <= tail < len(starts)
    assert 0 <= count <= len(starts)
    return [int(starts[(tail + offset) % len(starts)]) for offset in range(count)]


def assert_trees_match(actual: Any, expected: Any, *, rtol: float = 0.0) -> None:
    """Assert that two trees have the same structure, dtypes, shapes and values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert got.dtype == want.dtype, f"{name}: {got.dtype} for {want.dtype}"
        np.testing.assert_allclose(
            np.asarray(got), want, rtol=rtol if got.dtype.kind == "f" else 0, err_msg=name
        )


def stack_trees(trees: list[Any]) -> Any:
    """Stack the leaves of equal trees along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def neighbour_replacing_draws(
    rng: np.random.Generator, candidates: list[int], valid: set[int], count: int
) -> np.ndarray:
    """Draw like a biased sampler: any stored slot, or the next valid one if it is invalid."""
    drawn = rng.integers(len(candidates), size=count)
    replaced = {}
    for start in range(len(candidates)):
        at = start
        while candidates[at] not in valid:
            at = (at + 1) % len(candidates)
        replaced[start] = candidates[at]
    return np.array([replaced[int(start)] for start in drawn])
