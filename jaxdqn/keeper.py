"""When checkpoints of a run are taken, what goes into them, and how one is found again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from jaxdqn.checkpoint import (
    CHECKPOINTS,
    Checkpointer,
    Restored,
    Snapshot,
    place_of,
    read_newest,
    steps_of,
    to_host,
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
        whole = self._config.replay_in_checkpoint
        copied = self._snapshot(state if whole else without_replay(state))
        meta = {
            "config": to_dict(self._config),
            "preset": self._preset,
            "replay": whole,
            "host": host,
            "device_kind": jax.devices()[0].device_kind,
            "files": {name: _size(self._run / name) for name in _files()},
        }
        evaluated = host["last"] if host["judged"] == chunk else None
        snapshot = Snapshot(
            step=chunk,
            state=to_host(copied),
            best=to_host(jax.tree.map(lambda leaf: leaf.copy(), best)),
            last=to_host(jax.tree.map(lambda leaf: leaf.copy(), last)),
            meta=meta,
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

    def newest(self, check: Callable[[Record], None] | None = None) -> Restored | None:
        """Read the newest checkpoint that is whole; None if there never was one.

        Raises:
            ValueError: as ``read_newest``.
        """

        restored = read_newest(self._run, lambda meta: fitting(self._target, meta), check=check)
        if restored is not None:
            self._saved = restored.step
        return restored

    def newest_step(self) -> Path | None:
        """Return the directory of the newest checkpoint, if there is one."""
        steps = steps_of(self._run / CHECKPOINTS)
        return place_of(self._run, steps[0]) if steps else None

    def read_best(self, step: int, params: Params) -> Params:
        """Read the best parameters of a checkpoint, shaped like ``params``."""
        target = jax.eval_shape(lambda: params)
        return restore_params(place_of(self._run, step) / "best", target)

    def cut_back(self, restored: Restored | None) -> None:
        """Cut the records back to those of a checkpoint, or to none."""
        for name in _files():
            size = 0 if restored is None else restored.meta["files"][name]
            if _size(self._run / name) > size:
                os.truncate(self._run / name, size)


def _files() -> list[str]:
    return [FILES[kind] for kind in _CUT_BACK]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
