"""Follow the files of a run that another process writes."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from jaxdqn.storage.directory import LOCK, SUMMARY, lock_host
from jaxdqn.storage.jsonl import FILES, Record


class RecordReader:
    """Reader of the records appended to the files of a run since the last call.

    A resume or a rollback truncates the files, which then grow again. The reader compares the last
    line that it has read; if it differs, the file is read from the start. The lines at the start
    that are as before are not repeated.

    Args:
        run: run directory.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self._files = {kind: _LineReader(Path(run) / name) for kind, name in FILES.items()}

    def records(self) -> Iterator[tuple[str, Record]]:
        """Yield (kind, record) for each complete new line, in order of time.

        Raises:
            ValueError: if a line is not JSON.
        """
        new: list[tuple[float, str, Record]] = []
        for kind, file in self._files.items():
            last = 0.0
            for record in file.new_records():
                # Events before the first chunk carry no time.
                last = record.get("seconds", last) or last
                new.append((last, kind, record))
        for _, kind, record in sorted(new, key=lambda item: item[0]):
            yield kind, record


class _LineReader:
    """Reader of the lines appended to one file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._hashes: list[int] = []
        """Hash of each line that has been read."""
        self._read = 0
        """Number of bytes that have been read, up to the end of a line."""
        self._last = b""
        """Last line that has been read."""

    def new_records(self) -> list[Record]:
        hashes, count = self._hashes, len(self._hashes)
        try:
            return [json.loads(line) for line in self._new_lines()]
        except ValueError:
            # The file was truncated while it was read.
            del hashes[count:]
            self._hashes, self._read, self._last = hashes, 0, b""
        try:
            return [json.loads(line) for line in self._new_lines()]
        except ValueError as error:
            raise ValueError(f"{self._file}: must have a JSON record in each line") from error

    def _new_lines(self) -> list[bytes]:
        try:
            with self._file.open("rb") as opened:
                opened.seek(self._read - len(self._last))
                data = opened.read()
                unchanged = self._last != b"" and data.startswith(self._last)
                if not unchanged:
                    opened.seek(0)
                    data = opened.read()
        except FileNotFoundError:
            return []
        start = len(self._last) if unchanged else 0
        lines = data[start : data.rfind(b"\n") + 1].splitlines(keepends=True)
        hashes = [hash(line) for line in lines]
        known = 0
        if unchanged:
            self._hashes.extend(hashes)
        else:
            known = _common(self._hashes, hashes)
            self._hashes, self._read, self._last = hashes, 0, b""
        self._read += sum(map(len, lines))
        self._last = lines[-1] if lines else self._last
        return lines[known:]


def _common(before: list[int], now: list[int]) -> int:
    """Return the number of leading elements that two lists have in common."""
    for index, (one, other) in enumerate(zip(before, now, strict=False)):
        if one != other:
            return index
    return min(len(before), len(now))


def is_running(run: str | os.PathLike[str]) -> bool:
    """Return True if a process holds the lock of a run directory, as far as this machine can tell.

    On most network file systems the locks of other machines are not visible; see ``other_host``.
    """
    try:
        with (Path(run) / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def other_host(run: str | os.PathLike[str]) -> str | None:
    """Return the machine of a run without a summary, if it is not this one; otherwise None.

    Whether the process of such a run is alive cannot be told from here.
    """
    if (Path(run) / SUMMARY).exists():
        return None
    host = lock_host(run)
    return None if host == platform.node() else host
