"""The parent of one process among several. Imports no JAX.

Where the runtime that joins the processes fails it aborts, and says why in its own way. So the
run is a child: the parent sees to it that all processes are there, starts it, hands on signals,
and says in one line why it ended.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO, NamedTuple

from jaxdqn.cli.flags import FAILED, USAGE_ERROR
from jaxdqn.cli.launch.rendezvous import Peers, Place, meet
from jaxdqn.errors import RunFailed

LOST = 75
"""Exit code of a worker that lost contact with the others."""

LIFELINE = "JAXDQN_WORKER_LIFELINE"
"""Environment variable of a worker: a file descriptor that closes when its parent ends."""

HOSTS = "jaxdqn-hosts "
"""Begins the line by which a worker tells its parent who runs where."""

_GRACE = 5.0
"""Seconds for a worker to end by itself when another process has failed."""

_PATIENCE = 3.0
"""Seconds to wait for another process to say that it failed, where this one lost contact."""

_REFUSED = "refused"

_GO_ON = "with --resume, all processes started again go on from the last checkpoint"


class Timeouts(NamedTuple):
    """Time-outs in seconds."""

    heartbeat: int
    initialization: int


def is_worker() -> bool:
    """Say whether this process was started by ``supervise``."""
    return LIFELINE in os.environ


def place_of(
    coordinator: str | None, num_processes: int | None, process_id: int | None, multi_host: bool
) -> Place | None:
    """Return where this process stands, or None if it is alone or JAX is to find out.

    Raises:
        ValueError: naming the flag, its value and what would be right.
    """
    named = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        return None
    if multi_host:
        raise ValueError(
            f"multi_host=True: must come without {', '.join(given)}; JAX finds the cluster itself"
        )
    if coordinator is None or num_processes is None or process_id is None:
        absent = ", ".join(name for name in named if name not in given)
        raise ValueError(f"{', '.join(given)}: must come with {absent}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator={coordinator!r}: must be HOST:PORT, as node1:12345, the address of "
            "process 0"
        )
    if num_processes < 1:
        raise ValueError(f"num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id}: must be from 0 to {num_processes - 1}, below num_processes"
        )
    return Place(coordinator, num_processes, process_id)


def check_timeouts(timeouts: Timeouts) -> None:
    """Refuse time-outs that are out of range.

    Raises:
        ValueError: naming the flag and its value.
    """
    if not 1 <= timeouts.heartbeat <= 30:
        raise ValueError(f"heartbeat_seconds={timeouts.heartbeat}: must be from 1 to 30")
    if timeouts.initialization < 1:
        raise ValueError(f"initialization_seconds={timeouts.initialization}: must be at least 1")


def supervise(argv: Sequence[str], place: Place | None, timeouts: Timeouts) -> int:
    """Run the command as a child, one process among several, and return its exit code.

    Args:
        argv: the command's arguments.
        place: where this process stands; None where JAX finds out.
        timeouts: time-outs.

    Raises:
        RunFailed: in one line, if not all processes meet, or one fails in a way that it
            cannot tell itself.
    """
    peers = None if place is None else meet(place, timeouts.initialization)
    return _Parent(argv, place, timeouts, peers).run()


class _Parent:
    """A worker in progress as its parent sees it."""

    def __init__(
        self, argv: Sequence[str], place: Place | None, timeouts: Timeouts, peers: Peers | None
    ) -> None:
        self._place, self._timeouts, self._peers = place, timeouts, peers
        self._events: queue.Queue[int | str] = queue.Queue()
        self._held_back: list[str] = []
        self._last_error: str | None = None
        self._index = None if place is None else place.process_id
        self._names: list[str] = []
        lifeline, self._held_open = os.pipe()
        before = self._hand_on_signals()
        try:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "experiments.run", *argv],
                env={**os.environ, LIFELINE: str(lifeline)},
                pass_fds=(lifeline,),
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # Ctrl-C in a terminal goes to the parent alone, which hands it on.
                start_new_session=True,
            )
        except BaseException:
            for number, handler in before.items():
                signal.signal(number, handler)
            raise
        os.close(lifeline)

    def run(self) -> int:
        """Wait for the worker's end and say what it was."""
        assert self._worker.stderr is not None
        pump = threading.Thread(target=self._pump, args=(self._worker.stderr,), daemon=True)
        pump.start()
        threading.Thread(target=self._wait, args=(pump,), daemon=True).start()
        if self._peers is not None:
            self._peers.listen(self._events.put)
        code, cause = self._until_the_end()
        if code != 0:
            return self._conclude(code, cause)
        if self._peers is not None:
            self._peers.done()
        return 0

    def _until_the_end(self) -> tuple[int, str | None]:
        """Return the worker's exit code, and the cause that another process gave, if one did."""
        cause: str | None = None
        code: int | None = None
        deadline: float | None = None
        while code is None or (cause is None and self._is_echo(code)):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                if code is not None:
                    break
                self._worker.kill()
                deadline = None
                continue
            if isinstance(event, int):
                code, deadline = event, time.monotonic() + _PATIENCE
                if self._peers is None:
                    break
            elif cause is None:
                cause, deadline = event, time.monotonic() + _GRACE
        return code, cause

    def _conclude(self, code: int, cause: str | None) -> int:
        if code in (USAGE_ERROR, FAILED, 130) and self._last_error is not None:
            # It has said so itself.
            self._report(f"{_REFUSED if code == USAGE_ERROR else 'ended'}: {self._last_error}")
            return code
        if cause is not None:
            advice = "" if f" {_REFUSED}: " in cause else f"; {_GO_ON}"
            raise RunFailed(f"{cause}; {self._self()} cannot go on without it{advice}")
        said = translate("".join(self._held_back), self._names, self._place, self._timeouts)
        if said is not None:
            self._report(f"ended: {said}")
            advice = f"; {_GO_ON}" if self._names else ""  # else it has not begun
            raise RunFailed(f"{said}; {self._self()} cannot go on{advice}")
        sys.stderr.writelines(self._held_back)
        what = f"ended with code {code}"
        if code == LOST:
            what = "lost contact with the others"
        elif code < 0:
            what = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                what += " (by the kernel, if its host was out of memory)"
        self._report(what)
        raise RunFailed(f"{self._self()} {what}; {_GO_ON}")

    def _is_echo(self, code: int) -> bool:
        """Say whether a worker ended because another did."""
        return code == LOST or (code == -signal.SIGABRT and bool(self._held_back))

    def _report(self, what: str) -> None:
        if self._peers is not None:
            self._peers.report(f"{self._self()} {what}")

    def _self(self) -> str:
        which = "this process" if self._index is None else f"process {self._index}"
        return f"{which} on {platform.node()}"

    def _pump(self, stream: IO[str]) -> None:
        """Pass on what the worker says, but for what its runtime says when it aborts."""
        for line in stream:
            if line.startswith(HOSTS):
                said = json.loads(line[len(HOSTS) :])
                self._index, self._names = said["index"], said["names"]
            elif self._held_back or _FATAL.match(line):
                self._held_back.append(line)
            elif not line.startswith("[Gloo] Rank"):
                if line.startswith("error: "):
                    self._last_error = line[len("error: ") :].strip()
                sys.stderr.write(line)
                sys.stderr.flush()

    def _wait(self, pump: threading.Thread) -> None:
        code = self._worker.wait()
        pump.join(timeout=2.0)
        self._events.put(code)

    def _hand_on_signals(self) -> dict[int, signal.Handlers]:
        def hand_on(number: int, frame: FrameType | None) -> None:
            worker = getattr(self, "_worker", None)
            if worker is not None and worker.poll() is None:
                worker.send_signal(number)

        return {
            number: signal.signal(number, hand_on)  # type: ignore[misc]
            for number in (signal.SIGINT, signal.SIGTERM)
        }


_FATAL = re.compile(r"[EF]\d{4} \d\d:\d\d:\d\d.*(coordination_service|client\.h)")


def translate(
    text: str, names: Sequence[str], place: Place | None, timeouts: Timeouts
) -> str | None:
    """Return in plain words what the runtime says as it aborts; None if that is not known.

    Args:
        text: its lines.
        names: the host of each process, as far as they are known.
        place: of this process.
        timeouts: the time-outs in force.
    """

    def who(number: int) -> str:
        return f"process {number}" + (f" on {names[number]}" if number < len(names) else "")

    where = "the coordinator" if place is None else place.coordinator
    silent = re.search(r"[Tt]ask:? ?(\d+) heartbeat timeout", text) or re.search(
        r"stopped sending heartbeats\):\s+(?:\S*task:)?(\d+)", text
    )
    if silent:
        return (
            f"{who(int(silent[1]))} has not answered for {timeouts.heartbeat} s "
            "(heartbeat_seconds): it was killed, or its host or network failed"
        )
    twice = re.search(r"(\d+) unexpectedly tried to connect", text)
    if twice:
        return (
            f"process_id={twice[1]}: two processes have it, or one was started again while the "
            "run went on"
        )
    if "RegisterTask" in text and "DEADLINE_EXCEEDED" in text:
        return (
            f"not all processes joined {where} within {timeouts.initialization} s "
            "(initialization_seconds): one was not started, or cannot reach it"
        )
    if "Failed to send RPC to coordination service" in text or "PollForError" in text:
        return f"{who(0)}, the coordinator, is gone: it was killed, or its host or network failed"
    return None
