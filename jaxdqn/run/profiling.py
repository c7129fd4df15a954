"""Profiling: a ``jax.profiler`` trace of some chunks of a run."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from jaxdqn.config.config import Config
from jaxdqn.errors import reject
from jaxdqn.monitoring.output import say
from jaxdqn.run.callbacks import CallbackContext

FOLDER = "profile"
"""Folder of the trace in a run directory."""

REGIONS = (
    "keys", "act", "env", "metrics", "remember", "draw", "learn", "guard", "all-reduce",
)  # fmt: skip
"""Named regions of the compiled chunk, by ``jax.named_scope``."""


class Profiler:
    """Callback that traces ``chunks`` chunks after the first chunk of the process.

    The trace also contains the evaluations and checkpoints between these chunks.

    Args:
        chunks: number of chunks, at least 1.
        directory: output directory; the trace is in its folder ``plugins/profile/``. The default is
            ``profile`` in the run directory.
    """

    def __init__(self, chunks: int, directory: str | os.PathLike[str] | None = None) -> None:
        if chunks < 1:
            reject("profile", chunks, "at least 1")
        self._directory = None if directory is None else Path(directory)
        self._left, self._tracing = chunks, False

    def on_chunk(self, context: CallbackContext) -> None:
        """Start the trace after the first chunk and end it after ``chunks`` more."""
        if self._tracing:
            self._left -= 1
            if self._left == 0:
                self._stop()
        elif self._left > 0:
            if self._directory is None:
                if context.directory is None:
                    raise ValueError("directory: must be given for a run without a directory")
                self._directory = context.directory / FOLDER
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._tracing = True

    def on_end(self, context: CallbackContext) -> None:
        """End the trace if the run ended before ``chunks`` chunks were traced."""
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        say(f"profile in {self._directory}")


def check_profile(chunks: int | None, config: Config) -> None:
    """Check that a run has chunks to profile, before anything is compiled.

    Raises:
        ValueError: if the run has only one chunk, or ``chunks`` is out of range.
    """
    if chunks is None:
        return
    most = config.num_chunks - 1
    if most < 1:
        reject("profile", chunks, "left out of a run of one chunk; reduce log_every")
    if not 1 <= chunks <= most:
        reject("profile", chunks, f"between 1 and {most}, the chunks of the run after the first")
