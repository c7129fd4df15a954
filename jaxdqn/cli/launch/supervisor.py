"""Parent process that supervises one worker of a multi-process run. Imports no JAX.

When one process fails, JAX's distributed runtime aborts the others with long messages. Therefore
each process of a run is the child of a small parent. Unless JAX detects the cluster, the parents
connect to one another before the run starts. Each parent starts its worker, forwards signals, and
reports in one line why the worker failed.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from jaxdqn.cli.flags import FAILED, USAGE_ERROR
from jaxdqn.cli.launch.rendezvous import Peers, ProcessSpec, connect
from jaxdqn.cli.launch.runtime_errors import Timeouts, explain_abort, is_abort_message
from jaxdqn.errors import RunFailed

LOST_CONTACT = 75
"""Exit code of a worker that lost contact with the others."""

LIFELINE = "JAXDQN_WORKER_LIFELINE"
"""Environment variable of a worker: a file descriptor that reaches end-of-file when the parent
process exits."""

HOSTS_PREFIX = "jaxdqn-hosts "
"""Prefix of the line in which a worker reports the host of each process to its parent."""

_SIGNALLED = 128
"""Exit codes above this number mean that a signal stopped the worker in an orderly way."""

_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Signals that are forwarded to the worker, in addition to SIGINT. If this process ignores a
signal, so does its worker."""

_EXIT_SECONDS = 5.0
"""Time for a worker to exit by itself after another process has failed."""

_CAUSE_SECONDS = 3.0
"""Time to wait for another process to report its failure after this one lost contact."""

_REJECTED = "rejected its configuration"

_RESUME_ADVICE = "start all processes again with --resume to continue from the last checkpoint"


def is_worker() -> bool:
    """Return whether this process was started by ``supervise``."""
    return LIFELINE in os.environ


def process_spec(
    coordinator: str | None, num_processes: int | None, process_id: int | None, multi_host: bool
) -> ProcessSpec | None:
    """Return the process described by the flags; None for a single process or ``multi_host``.

    Raises:
        ValueError: if the flags are incomplete, out of range, or combined with ``multi_host``.
    """
    flags = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    present = [name for name, value in flags.items() if value is not None]
    if not present:
        return None
    if multi_host:
        raise ValueError(
            f"multi_host=True: must be given without {', '.join(present)}; JAX detects the cluster"
        )
    if coordinator is None or num_processes is None or process_id is None:
        absent = ", ".join(name for name in flags if name not in present)
        raise ValueError(f"{', '.join(present)}: must be given with {absent}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator={coordinator!r}: must be the address of process 0 as HOST:PORT, for "
            "example node1:12345"
        )
    if num_processes < 1:
        raise ValueError(f"num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id}: must be from 0 to {num_processes - 1}, below num_processes"
        )
    return ProcessSpec(coordinator, num_processes, process_id)


def check_timeouts(timeouts: Timeouts) -> None:
    """Check that time-outs are in range.

    Raises:
        ValueError: if a time-out is out of range.
    """
    if not 1 <= timeouts.heartbeat <= 30:
        raise ValueError(f"heartbeat_seconds={timeouts.heartbeat}: must be from 1 to 30")
    if timeouts.initialization < 1:
        raise ValueError(f"initialization_seconds={timeouts.initialization}: must be at least 1")


def supervise(argv: Sequence[str], spec: ProcessSpec | None, timeouts: Timeouts) -> int:
    """Run one process of a multi-process run as a child, and return its exit code.

    Args:
        argv: the command's arguments.
        spec: this process; None in a cluster that JAX detects.
        timeouts: time-outs.

    Raises:
        RunFailed: with one line, if not all processes connect, if another process fails, or if
            the worker fails without printing its own error.
    """
    peers = None if spec is None else connect(spec, timeouts.initialization)
    return _Supervisor(argv, spec, timeouts, peers).run()


class _Supervisor:
    """Parent of a running worker."""

    def __init__(
        self,
        argv: Sequence[str],
        spec: ProcessSpec | None,
        timeouts: Timeouts,
        peers: Peers | None,
    ) -> None:
        self._spec, self._timeouts, self._peers = spec, timeouts, peers
        # An event is the worker's exit code or another process's report of its failure.
        self._events: queue.Queue[int | str] = queue.Queue()
        self._abort_lines: list[str] = []
        self._last_error: str | None = None
        self._index = None if spec is None else spec.process_id
        self._hosts: list[str] = []
        # The write end stays open for as long as this process lives.
        lifeline, self._held_open = os.pipe()
        handlers_before = self._forward_signals()
        try:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "jaxdqn", "run", *argv],
                env={**os.environ, LIFELINE: str(lifeline)},
                pass_fds=(lifeline,),
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # Ctrl-C in a terminal reaches the parent only, which forwards it.
                start_new_session=True,
            )
        except BaseException:
            for number, handler in handlers_before.items():
                signal.signal(number, handler)
            raise
        os.close(lifeline)

    def run(self) -> int:
        """Wait for the worker to exit, report a failure, and return the exit code."""
        assert self._worker.stderr is not None
        reader = threading.Thread(
            target=self._forward_stderr, args=(self._worker.stderr,), daemon=True
        )
        reader.start()
        threading.Thread(target=self._wait_for_worker, args=(reader,), daemon=True).start()
        if self._peers is not None:
            self._peers.listen(self._events.put)
        code, cause = self._wait_for_end()
        if code != 0:
            return self._report_failure(code, cause)
        if self._peers is not None:
            self._peers.done()
        return 0

    def _wait_for_end(self) -> tuple[int, str | None]:
        """Wait for the worker; return its exit code, and the cause if another process reported one.

        Kill the worker if it outlives another process's failure by ``_EXIT_SECONDS``.
        """
        cause: str | None = None
        code: int | None = None
        deadline: float | None = None
        # If the worker exited because another process failed, wait for the report of that failure.
        while code is None or (cause is None and self._is_consequence(code)):
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
                code, deadline = event, time.monotonic() + _CAUSE_SECONDS
                if self._peers is None:
                    break
            elif cause is None:
                cause, deadline = event, time.monotonic() + _EXIT_SECONDS
        return code, cause

    def _report_failure(self, code: int, cause: str | None) -> int:
        """Report to the other processes why the worker failed, unless one of them is the cause.

        Return the exit code if the worker has printed its error itself.

        Raises:
            RunFailed: if the worker has not printed its error.
        """
        reported = code in (USAGE_ERROR, FAILED) or code > _SIGNALLED
        if reported and self._last_error is not None:
            # The worker has printed its error itself.
            kind = _REJECTED if code == USAGE_ERROR else "failed"
            self._report(f"{kind}: {self._last_error}")
            return code
        if cause is not None:
            advice = "" if f" {_REJECTED}: " in cause else f"; {_RESUME_ADVICE}"
            raise RunFailed(f"{cause}; {self._describe()} cannot continue without it{advice}")
        text = "".join(self._abort_lines)
        explanation = explain_abort(text, self._hosts, self._spec, self._timeouts)
        if explanation is not None:
            self._report(f"failed: {explanation}")
            # A worker that has not reported its hosts has not started the run: nothing to resume.
            advice = f"; {_RESUME_ADVICE}" if self._hosts else ""
            raise RunFailed(f"{explanation}; {self._describe()} cannot continue{advice}")
        sys.stderr.writelines(self._abort_lines)
        outcome = _describe_exit(code)
        self._report(outcome)
        raise RunFailed(f"{self._describe()} {outcome}; {_RESUME_ADVICE}")

    def _is_consequence(self, code: int) -> bool:
        """Return whether the worker exited because another process did."""
        return code == LOST_CONTACT or (code == -signal.SIGABRT and bool(self._abort_lines))

    def _report(self, outcome: str) -> None:
        if self._peers is not None:
            self._peers.report(f"{self._describe()} {outcome}")

    def _describe(self) -> str:
        process = "this process" if self._index is None else f"process {self._index}"
        return f"{process} on {platform.node()}"

    def _forward_stderr(self, stream: IO[str]) -> None:
        """Forward the worker's standard error to this process's.

        Keep back the report of hosts, Gloo's rank lines and the runtime's message when it aborts.
        """
        for line in stream:
            if line.startswith(HOSTS_PREFIX):
                message = json.loads(line[len(HOSTS_PREFIX) :])
                self._index, self._hosts = message["index"], message["hosts"]
            elif self._abort_lines or is_abort_message(line):
                self._abort_lines.append(line)
            elif not line.startswith("[Gloo] Rank"):
                if line.startswith("error: "):
                    self._last_error = line[len("error: ") :].strip()
                sys.stderr.write(line)
                sys.stderr.flush()

    def _wait_for_worker(self, reader: threading.Thread) -> None:
        code = self._worker.wait()
        reader.join(timeout=2.0)
        self._events.put(code)

    def _forward_signals(self) -> dict[int, signal.Handlers]:
        """Install handlers that forward signals to the worker; return the previous handlers."""

        def forward(number: int, frame: FrameType | None) -> None:
            worker = getattr(self, "_worker", None)
            if worker is not None and worker.poll() is None:
                worker.send_signal(number)

        return {
            number: signal.signal(number, forward)  # type: ignore[misc]
            for number in (signal.SIGINT, *map(signal.Signals.__getitem__, _FORWARDED))
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
        }


def _describe_exit(code: int) -> str:
    if code == LOST_CONTACT:
        return "lost contact with the other processes"
    if code >= 0:
        return f"exited with code {code}"
    outcome = f"was killed by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        outcome += " (possibly by the kernel, because the host ran out of memory)"
    return outcome
