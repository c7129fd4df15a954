"""``CheckpointManager``: decides when to save checkpoints, what to save and what to restore."""

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
from jaxdqn.storage.checkpoint import Checkpointer, Snapshot, checkpoint_path, rename_damaged
from jaxdqn.storage.jsonl import FILES, Record
from jaxdqn.storage.params import restore_params
from jaxdqn.storage.reshard import reshard, same_layout, state_shape
from jaxdqn.storage.restore import Restored, read_newest
from jaxdqn.storage.resume import machine
from jaxdqn.storage.state import shape_for, to_host, with_key_data, without_replay
from jaxdqn.types import Params, PyTree, TrainState

SECONDS_BETWEEN = 300.0
"""Time between checkpoints if ``checkpoint_every`` is not set."""

_TRUNCATED_RECORDS = ("metrics", "evaluation")


class CheckpointManager:
    """Decide when to save a checkpoint of a run, what to save, and what to restore.

    The caller must hold the lock of the run directory. With several processes, each process has a
    manager, and all must call the same methods in the same order, because most methods communicate.
    Only the manager of process 0 accesses files.

    Args:
        run: run directory.
        config: configuration of the run.
        snapshot: function that copies a state on the device, with keys as key data.
        target: shapes of the state.
        preset: name of the preset; None if the run has none.
        shape_under: function that returns the shapes of the state under the configuration of a
            checkpoint, which may differ from ``config``.
        clock: function that returns the time in seconds.
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

    def is_due(self, chunk: int) -> bool:
        """Return True if a checkpoint is due after this chunk.

        With ``checkpoint_every`` a checkpoint is due at fixed numbers of chunks, even while the
        previous one is being written. A kill then loses at most the chunks since the last
        checkpoint and the checkpoint in progress. Otherwise the clock decides, and a checkpoint is
        due only after the previous one has been written.

        Raises:
            OSError: if the previous checkpoint could not be written.
        """
        return multihost.broadcast(lambda: self._is_due(chunk))

    def _is_due(self, chunk: int) -> bool:
        if self._checkpointer is not None:
            self._checkpointer.check()
        every = self._config.chunks_per_checkpoint
        if every is not None:
            return chunk % every == 0
        return not self.busy and self._clock() - self._saved_at >= SECONDS_BETWEEN

    @property
    def busy(self) -> bool:
        """True while this process writes a checkpoint."""
        return self._checkpointer is not None and self._checkpointer.busy

    def has_saved(self, chunk: int) -> bool:
        """Return True if the last checkpoint holds the state after this chunk."""
        return self._saved == chunk

    def save(
        self, chunk: int, state: TrainState, *, best: Params, last: Params, host: Record
    ) -> None:
        """Start saving a checkpoint; return once the state is copied and may be donated.

        Args:
            chunk: number of completed chunks.
            state: state of the run.
            best: best parameters.
            last: online parameters.
            host: state of the host loop, as JSON values.

        Raises:
            OSError: if the previous checkpoint could not be written.
        """
        self.wait()  # so that at most one copy of the state exists
        saved = state if self._config.replay_in_checkpoint else without_replay(state)
        # On accelerators the transfer to the host already makes a copy.
        copied = self._snapshot(saved) if jax.default_backend() == "cpu" else with_key_data(saved)
        arrays = to_host(copied) if jax.process_count() == 1 else gather(copied)
        self._saved, self._saved_at = chunk, self._clock()
        if self._checkpointer is None:
            return
        evaluation = host["last"]
        snapshot = Snapshot(
            step=chunk,
            state=arrays,
            best=to_host(jax.tree.map(lambda leaf: leaf.copy(), best)),
            last=to_host(jax.tree.map(lambda leaf: leaf.copy(), last)),
            meta=self._meta(host),
            records=tuple(self._run / name for name in _files()),
            score=None if evaluation is None else evaluation["return_mean"],
        )
        self._checkpointer.save(snapshot)

    def _meta(self, host: Record) -> Record:
        return {
            "config": to_dict(self._config),
            "preset": self._preset,
            "replay": self._config.replay_in_checkpoint,
            "host": host,
            "machine": machine(),
            "files": {name: _size(self._run / name) for name in _files()},
        }

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            OSError: if that checkpoint could not be written.
        """
        multihost.broadcast(self._wait)

    def _wait(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def close(self) -> None:
        """Wait for a checkpoint in progress and ignore its failure."""
        with contextlib.suppress(OSError):
            self._wait()

    def newest(
        self, check: Callable[[Record], None] | None = None, *, finite: bool = False
    ) -> Restored | None:
        """Read the newest intact checkpoint, in the layout of this run; None if there is none.

        Newer, damaged checkpoints are renamed; otherwise they would still count as the newest.

        Args:
            check: see ``read_newest``.
            finite: True to skip checkpoints with non-finite values.

        Raises:
            ValueError: if ``read_newest`` raises it.
        """
        read: list[Restored] = []

        def read_on_coordinator() -> Record | None:
            restored = self._read_newest(check, finite)
            if restored is None:
                return None
            read.append(restored)
            return {"step": restored.step, "meta": restored.meta, "skipped": restored.skipped}

        found = multihost.broadcast(read_on_coordinator)
        if found is None:
            return None
        if read:
            restored = read[0]
        else:
            # The other processes have only shapes here. They receive their parts of the state when
            # it is transferred to the devices.
            shapes = jax.eval_shape(with_key_data, shape_for(self._target, found["meta"]))
            restored = Restored(
                found["step"], shapes, found["meta"], tuple(found["skipped"]), damaged=()
            )
        self._saved = restored.step
        self._preset = self._preset or restored.meta["preset"]
        return restored

    def _read_newest(self, check: Callable[[Record], None] | None, finite: bool) -> Restored | None:
        restored = read_newest(self._run, self._stored_shape, check=check, finite=finite)
        if restored is None:
            return None
        target = shape_for(self._target, restored.meta)
        old = from_dict(restored.meta["config"])
        state = reshard(restored.state, old, self._config, target)
        rename_damaged(restored.damaged)
        return restored._replace(state=state)

    def _stored_shape(self, meta: Record) -> TrainState:
        """Return the shapes of the state in a checkpoint, which may use different devices."""
        old = from_dict(meta["config"])
        if same_layout(old, self._config):
            return shape_for(self._target, meta)
        return shape_for(self._shape_under(old), meta)

    def path(self, step: int) -> Path:
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

    def truncate_records(self, restored: Restored | None) -> None:
        """Truncate the records of chunks and evaluations to their lengths at a checkpoint.

        Args:
            restored: the checkpoint. If None, the files are backed up and emptied.

        Raises:
            ValueError: if a file is shorter than at the checkpoint.
        """
        multihost.broadcast(lambda: self._truncate_records(restored))

    def _truncate_records(self, restored: Restored | None) -> None:
        for name in _files():
            file = self._run / name
            if restored is None:
                if _size(file):
                    run_directory.back_up_and_empty(file)
                continue
            size = restored.meta["files"][name]
            if _size(file) < size:
                raise ValueError(
                    f"{file}: must have at least the {size} bytes that it had when checkpoint "
                    f"{restored.step} was taken, not {_size(file)}"
                )
            os.truncate(file, size)


def _files() -> list[str]:
    return [FILES[kind] for kind in _TRUNCATED_RECORDS]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
