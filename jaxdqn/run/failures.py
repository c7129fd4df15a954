"""Failures during a run: record them, and save the state before them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.errors import RunFailed
from jaxdqn.run.compile import Programs
from jaxdqn.run.progress import Progress
from jaxdqn.run.recorder import Recorder
from jaxdqn.run.saving import StateSaver
from jaxdqn.types import TrainState


class FailureHandler:
    """Record failures and restarts of environments, and failures of the last checkpoint.

    Args:
        programs: programs of the run; they restart the environments on the host.
        progress: progress of the run.
        recorder: receives the events.
        saver: saves the state in which the run fails.
    """

    def __init__(
        self, programs: Programs, progress: Progress, recorder: Recorder, saver: StateSaver
    ) -> None:
        self._programs, self._progress = programs, progress
        self._recorder, self._saver = recorder, saver
        self._restarts_seen = 0
        self.os_error: OSError | None = None
        """Error that prevented the last checkpoint; None if it was written."""

    def end_run(self, failed: RunFailed, state: TrainState) -> NoReturn:
        """Record a failure of the environment, save the state after it, and raise the failure."""
        self._recorder.log_event({"event": "environment failed", "reason": str(failed)})
        self._save(state)
        raise failed

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the failure of an environment, and save the state before it if it is known."""
        try:
            yield
        except EnvironmentFailed as failed:
            self.record_restarts()
            record = {"event": "environment failed", "reason": str(failed)}
            self._recorder.log_event({**record, "traceback": _cause(failed)})
            if failed.state is not None:
                self._save(failed.state)
            raise

    def record_restarts(self) -> None:
        """Record the failures since the last call that restarted environments on the host."""
        failures = self._programs.env_failures()
        for failed in failures[self._restarts_seen :]:
            self._progress.env_restarts += 1
            message = f"{failed}; starting all environments again, with new episodes"
            record = {"event": "environments restarted", "message": message}
            self._recorder.log_event({**record, "traceback": _cause(failed)})
        self._restarts_seen = len(failures)

    @contextmanager
    def keeping_os_error(self) -> Iterator[None]:
        """Keep an ``OSError`` instead of raising it, so that the parameters are still saved."""
        try:
            yield
        except OSError as error:
            self.os_error = error

    def _save(self, state: TrainState) -> None:
        """Save the state in which the run fails."""
        with self.keeping_os_error():
            self._saver.save_last(state)
            self._saver.wait()


def _cause(failed: EnvironmentFailed) -> str:
    """Return the traceback of the exception that the environment raised."""
    return "".join(traceback.format_exception(failed.__cause__))
