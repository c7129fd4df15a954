"""When checkpoints of a run are taken, what goes into them, and how one is found again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxdqn.config.config import Config, from_dict, to_dict
from jaxdqn.parallel import multihost
from jaxdqn.parallel.sharded_transfer import gather
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.checkpoint import Checkpointer, Snapshot, checkpoint_path, set_aside
from jaxdqn.storage.jsonl import FILES, Record
from jaxdqn.storage.params import restore_params
from jaxdqn.storage.reshard import reshard, same_layout, state_shape
from jaxdqn.storage.restore import Restored, read_newest
from jaxdqn.storage.resume import machine
from jaxdqn.storage.state import key_data_of, shape_for, to_host, without_replay
from jaxdqn.types import Params, PyTree, TrainState

SECONDS_BETWEEN = 300.0
"""Between checkpoints, where no number of rows is configured."""

_CUT_BACK = ("metrics", "evaluation")


class CheckpointManager:
    """Keeps a run safe in its directory.

    The caller holds the run's lock. ``snapshot`` copies a state on the device. Of several
    processes each has one, which are called alike; that of process 0 reads and writes, the
    others' touch no file.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        snapshot: Callable[[TrainState], PyTree],
        target: TrainState,
        *,
        preset: str | None = None,
        shape_under: Callable[[Config], TrainState] = state_shape,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._config, self._target = run, config, target
        self._snapshot, self._preset, self._clock = snapshot, preset, clock
        self._checkpointer = Checkpointer(run, config.keep) if multihost.is_coordinator() else None
        self._shape_under = shape_under
        self._saved: int | None = None
        self._saved_at = clock()

    def due(self, chunk: int) -> bool:
        """Say whether a checkpoint is to be taken after this chunk.

        By the clock only when the one before is written; by rows always, so that a
        kill costs no more than the chunks since, and the one being written.

        Raises:
            OSError: if the one before could not be written.
        """
        return multihost.broadcast(lambda: self._due(chunk))

    def _due(self, chunk: int) -> bool:
        if self._checkpointer is not None:
            self._checkpointer.check()
        every = self._config.chunks_per_checkpoint
        if every is not None:
            return chunk % every == 0
        return not self.busy and self._clock() - self._saved_at >= SECONDS_BETWEEN

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written by this process."""
        return self._checkpointer is not None and self._checkpointer.busy

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
        self.wait()  # so that there is never more than one copy
        whole = self._config.replay_in_checkpoint
        kept = state if whole else without_replay(state)
        # On accelerators the transfer is the copy.
        copied = self._snapshot(kept) if jax.default_backend() == "cpu" else key_data_of(kept)
        words = to_host(copied) if jax.process_count() == 1 else gather(copied)
        self._saved, self._saved_at = chunk, self._clock()
        if self._checkpointer is None:
            return
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

    def wait(self) -> None:
        """Return when all that was taken is on the disk.

        Raises:
            OSError: if it could not be written.
        """
        multihost.broadcast(self._wait)

    def _wait(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def close(self) -> None:
        """Let a checkpoint that is being written be finished; whether it is shows on the disk."""
        with contextlib.suppress(OSError):
            self._wait()

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

        read: list[Restored] = []

        def read_on_lead() -> Record | None:
            restored = read_newest(self._run, self._stored_shape, check=check, finite=finite)
            if restored is None:
                return None
            target = shape_for(self._target, restored.meta)
            old = from_dict(restored.meta["config"])
            moved = reshard(restored.state, old, self._config, target)
            restored = restored._replace(state=moved)
            read.append(restored)
            set_aside(restored.damaged)
            return {
                "step": restored.step,
                "meta": restored.meta,
                "skipped": restored.skipped,
            }

        found = multihost.broadcast(read_on_lead)
        if found is None:
            return None
        meta = found["meta"]
        # Other processes are given their parts of the state when it is revived.
        shapes = jax.eval_shape(key_data_of, shape_for(self._target, meta))
        restored = (
            read[0] if read else Restored(found["step"], shapes, meta, tuple(found["skipped"]), ())
        )
        self._saved = restored.step
        self._preset = self._preset or meta["preset"]
        return restored

    def _stored_shape(self, meta: Record) -> TrainState:
        """Return the shapes of the state in a checkpoint, which may be of other devices."""
        old = from_dict(meta["config"])
        if same_layout(old, self._config):
            return shape_for(self._target, meta)
        return shape_for(self._shape_under(old), meta)

    def place(self, step: int) -> Path:
        """Return the directory of a checkpoint."""
        return checkpoint_path(self._run, step)

    def read_best(self, step: int, params: Params) -> Params:
        """Read the best parameters of a checkpoint, shaped like ``params``."""
        target = jax.eval_shape(lambda: params)
        if multihost.is_coordinator():
            best = restore_params(checkpoint_path(self._run, step) / "best", target)
        else:
            best = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
        return (
            best if jax.process_count() == 1 else jax.device_put(multihost.broadcast_arrays(best))
        )

    def cut_back(self, restored: Restored | None) -> None:
        """Cut the records back to those of a checkpoint; without one, put them away.

        Raises:
            ValueError: if they are shorter than they were.
        """
        multihost.broadcast(lambda: self._cut_back(restored))

    def _cut_back(self, restored: Restored | None) -> None:
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


def _files() -> list[str]:
    return [FILES[kind] for kind in _CUT_BACK]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
