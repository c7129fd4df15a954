"""Benchmark cases that run in separate processes.

XLA fixes its number of CPU threads when a process starts, so a comparison of thread counts needs
several processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import alternating

CPU_THREADS = 1
"""XLA threads of jaxdqn; ``jaxdqn run`` chooses the same number for the matched workload."""


_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


@contextlib.contextmanager
def shared_device() -> Iterator[None]:
    """Let the processes that are started within share the memory of a GPU with this one.

    Otherwise the first process of JAX allocates 75 % of the memory.
    """
    given = os.environ.get(_PREALLOCATE)
    os.environ.setdefault(_PREALLOCATE, "false")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(_PREALLOCATE, None)


class Process:
    """A library in a separate process that waits for requests."""

    def __init__(self, command: Sequence[str], cpu_threads: int | None = None) -> None:
        """Start ``command`` with this number of XLA threads on CPU; None selects one per core."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
        if cpu_threads is not None:
            environment["NPROC"] = str(cpu_threads)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    @classmethod
    def jaxdqn(cls, gradient_steps: int, cpu_threads: int | None, *arguments: str) -> Process:
        """Start jaxdqn on the matched workload with additional arguments of the driver."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.versus.jaxdqn_driver",
            str(gradient_steps),
            *arguments,
        ]
        return cls(command, cpu_threads)

    @classmethod
    def peer(
        cls,
        python: str,
        name: str,
        argument: str,
        gradient_steps: int,
        cpu_threads: int | None = None,
    ) -> Process:
        """Start a peer in an interpreter where it is installed."""
        driver = Path(__file__).parent / "versus" / "peers.py"
        # -P keeps the driver's directory out of sys.path, where it could shadow the peer's imports.
        return cls([python, "-P", str(driver), name, argument, str(gradient_steps)], cpu_threads)

    def receive(self) -> dict[str, Any]:
        """Return the next message; if the process has exited, ``missing`` gives the reason."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        lines = [text for text in self._errors.read().splitlines() if text.strip()]
        return {"missing": f"the process exited: {lines[-1].strip() if lines else 'no message'}"}

    def send(self, request: str) -> None:
        """Send a line; if the process has exited, the next answer reports it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(request, file=self._process.stdin, flush=True)

    def measure(self) -> dict[str, Any]:
        """Request one measurement and return the answer."""
        self.send("go")
        return self.receive()

    def close(self) -> None:
        """Close the standard input of the process; kill it if it does not exit within 10 s."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def alternate_processes(
    processes: Mapping[str, Process], *, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Wait until all processes are ready, measure each once per round, and close them.

    Returns:
        The answers of each process, [rounds].
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
    try:
        for process in processes.values():
            process.receive()
        for name in alternating(processes, rounds):
            answers[name].append(processes[name].measure())
    finally:
        for process in processes.values():
            process.close()
    return answers
