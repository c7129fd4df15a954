"""Loggers that run in a separate thread, so that a run does not wait for them."""

from __future__ import annotations

import queue
import threading

from jaxdqn.monitoring.loggers import Logger
from jaxdqn.storage.jsonl import Record

_MOST_WAITING = 1000
"""Maximum number of waiting records; a logger that is further behind delays the run."""


def in_background(logger: Logger) -> Logger:
    """Wrap a logger so that a separate thread calls it, with the records in order.

    After the first exception of the logger, the next call raises this exception, and the thread
    only closes the logger. ``close`` waits until every record is written.

    Args:
        logger: logger to call; only the thread calls it.
    """
    worker = _Worker(logger)
    return Logger(log=worker.log, close=worker.close, name=logger.name)


class _Worker:
    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._waiting: queue.Queue[tuple[str, Record] | None] = queue.Queue(_MOST_WAITING)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=logger.name, daemon=True)
        self._thread.start()

    def log(self, kind: str, record: Record) -> None:
        self._raise_failure()
        self._waiting.put((kind, record))

    def close(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _work(self) -> None:
        failed = False
        while (item := self._waiting.get()) is not None:
            if failed:
                continue
            try:
                self._logger.log(*item)
            except Exception as error:
                self._failure, failed = error, True
        try:
            self._logger.close()
        except Exception as error:
            if not failed:
                self._failure = error
