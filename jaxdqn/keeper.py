"""When checkpoints of a run are taken, what goes into them, and how one is found again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax

from jaxdqn import run_directory
from jaxdqn.checkpoint import (
    Checkpointer,
    Restored,
    Snapshot,
    place_of,
    read_newest,
    set_aside,
    to_host,
    words_of,
)
from jaxdqn.config import Config, to_dict
from jaxdqn.loggers import FILES, Record
from jaxdqn.programs import fitting, without_replay
from jaxdqn.run_directory import restore_params
from jaxdqn.types import Params, PyTree, TrainState

SECONDS_BETWEEN = 300.0
"""Between checkpoints, where no number of rows is configured."""

_CUT_BACK = ("metrics", "evaluation")


class Keeper:
    """Keeps a run safe in its directory.

    The caller holds the run's lock. ``snapshot`` copies a state on the device.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        snapshot: Callable[[TrainState], PyTree],
        target: TrainState,
        *,
        preset: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._config, self._target = run, config, target
        self._snapshot, self._preset, self._clock = snapshot, preset, clock
        self._checkpointer = Checkpointer(run, config.keep)
        self._saved: int | None = None
        self._saved_at = clock()

    def due(self, chunk: int) -> bool:
        """Say whether a checkpoint is to be taken after this chunk.

        By the clock only when the one before is written; by rows always, so that a
        kill costs no more than the chunks since, and the one being written.
        """
        every = self._config.chunks_per_checkpoint
        if every is not None:
            return chunk % every == 0
        return not self._checkpointer.busy and self._clock() - self._saved_at >= SECONDS_BETWEEN

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._checkpointer.busy

    def has(self, chunk: int) -> bool:
        """Say whether the last checkpoint taken is of this chunk."""
        return self._saved == chunk

    def save(
        self, chunk: int, state: TrainState, *, best: Params, last: Params, host: Record
    ) -> None:
        """Take a checkpoint; return when the state is copied and may be donated.

        Raises:
            OSError: if the checkpoint before could not be written.
        """
        self._checkpointer.wait()  # so that there is never more than one copy
        whole = self._config.replay_in_checkpoint
        kept = state if whole else without_replay(state)
        if jax.default_backend() == "cpu":
            words = to_host(self._snapshot(kept))
        else:
            words = to_host(words_of(kept))  # the transfer is the copy
        meta = {
            "config": to_dict(self._config),
            "preset": self._preset,
            "replay": whole,
            "host": host,
            "machine": machine(),
            "files": {name: _size(self._run / name) for name in _files()},
        }
        evaluated = host["last"]
        snapshot = Snapshot(
            step=chunk,
            state=words,
            best=to_host(jax.tree.map(lambda leaf: leaf.copy(), best)),
            last=to_host(jax.tree.map(lambda leaf: leaf.copy(), last)),
            meta=meta,
            records=tuple(self._run / name for name in _files()),
            score=None if evaluated is None else evaluated["return_mean"],
        )
        self._checkpointer.save(snapshot)
        self._saved, self._saved_at = chunk, self._clock()

    def wait(self) -> None:
        """Return when all that was taken is on the disk.

        Raises:
            OSError: if it could not be written.
        """
        self._checkpointer.wait()

    def close(self) -> None:
        """Let a checkpoint that is being written be finished; whether it is shows on the disk."""
        with contextlib.suppress(OSError):
            self._checkpointer.wait()

    def check(self) -> None:
        """Say at once whether a checkpoint could not be written.

        Raises:
            OSError: if so.
        """
        self._checkpointer.check()

    def newest(
        self, check: Callable[[Record], None] | None = None, *, finite: bool = False
    ) -> Restored | None:
        """Read the newest checkpoint that is whole; None if there is none.

        Damaged ones that are newer are set aside, for they would count as the newest.

        Args:
            check: as ``read_newest`` takes it.
            finite: whether all that it holds must be finite.

        Raises:
            ValueError: as ``read_newest``.
        """

        restored = read_newest(
            self._run, lambda meta: fitting(self._target, meta), check=check, finite=finite
        )
        if restored is not None:
            self._saved = restored.step
            self._preset = self._preset or restored.meta["preset"]
            set_aside(restored.damaged)
        return restored

    def place(self, step: int) -> Path:
        """Return the directory of a checkpoint."""
        return place_of(self._run, step)

    def read_best(self, step: int, params: Params) -> Params:
        """Read the best parameters of a checkpoint, shaped like ``params``."""
        target = jax.eval_shape(lambda: params)
        return restore_params(place_of(self._run, step) / "best", target)

    def cut_back(self, restored: Restored | None) -> None:
        """Cut the records back to those of a checkpoint; without one, put them away.

        Raises:
            ValueError: if they are shorter than they were.
        """
        for name in _files():
            file = self._run / name
            if restored is None:
                if _size(file):
                    run_directory.put_away(file)
                continue
            size = restored.meta["files"][name]
            if _size(file) < size:
                raise ValueError(
                    f"{file}: must have at least the {size} bytes that it had when checkpoint "
                    f"{restored.step} was taken, not {_size(file)}"
                )
            os.truncate(file, size)


def machine() -> Record:
    """Return what a run must not change to repeat to the bit."""
    return {
        "device_kind": jax.devices()[0].device_kind,
        "cpu_threads": os.environ.get("NPROC"),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "gymnax")},
    }


def changes_of_machine(restored: Restored) -> list[str]:
    """Return what is not as it was when a checkpoint was taken, in words."""
    before, now = restored.meta["machine"], machine()
    return [f"{name} was {before.get(name)}, is {now[name]}" for name in now
            if before.get(name) != now[name]]  # fmt: skip


def _files() -> list[str]:
    return [FILES[kind] for kind in _CUT_BACK]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
