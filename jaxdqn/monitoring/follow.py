"""Follow the files of a run that another process writes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from jaxdqn.storage.directory import LOCK
from jaxdqn.storage.jsonl import FILES, Record


class RecordReader:
    """Reader of the records appended to the files of a run since the last call.

    A file that has become shorter, for example after a resume or a rollback, is read from the
    start.

    Args:
        run: run directory.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self._files = {kind: Path(run) / name for kind, name in FILES.items()}
        self._read = dict.fromkeys(FILES, 0)

    def records(self) -> Iterator[tuple[str, Record]]:
        """Yield (kind, record) for each complete new line, in order of time."""
        new: list[tuple[float, str, Record]] = []
        for kind, file in self._files.items():
            last = 0.0
            for line in self._new_lines(kind, file):
                record = json.loads(line)
                # Events before the first chunk carry no time.
                last = record.get("seconds", last) or last
                new.append((last, kind, record))
        for _, kind, record in sorted(new, key=lambda item: item[0]):
            yield kind, record

    def _new_lines(self, kind: str, file: Path) -> list[bytes]:
        try:
            with file.open("rb") as opened:
                if opened.seek(0, os.SEEK_END) < self._read[kind]:
                    self._read[kind] = 0
                opened.seek(self._read[kind])
                data = opened.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._read[kind] += len(complete)
        return complete.splitlines()


def is_running(run: str | os.PathLike[str]) -> bool:
    """Return True if a process on this machine holds the lock of a run directory."""
    try:
        with (Path(run) / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
