"""Benchmark cases that run in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CPU_THREADS = 1
"""Of XLA in jaxdqn, as ``jaxdqn run`` chooses for the matched work."""


class Process:
    """A library in a process of its own; between requests it waits."""

    def __init__(self, command: Sequence[str], cpu_threads: int | None = None) -> None:
        """Start ``command``; ``cpu_threads`` are XLA's on CPU, as many as cores if None."""
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
    def own(cls, gradient_steps: int, cpu_threads: int | None, *more: str) -> Process:
        """Start jaxdqn at the matched work; ``more`` are arguments of the driver."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.versus.jaxdqn_driver",
            str(gradient_steps),
            *more,
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
        """Start a peer in an interpreter that has it."""
        driver = Path(__file__).parent / "versus" / "peers.py"
        # -P: the driver's directory is not searched for the peer's imports.
        return cls([python, "-P", str(driver), name, argument, str(gradient_steps)], cpu_threads)

    def receive(self) -> dict[str, Any]:
        """Wait for the peer's next message; one with ``missing`` means there are no more."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        said = [text for text in self._errors.read().splitlines() if text.strip()]
        return {"missing": f"it ended: {said[-1].strip() if said else 'silently'}"}

    def measure(self) -> dict[str, Any]:
        """Have the peer do its work once."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print("go", file=self._process.stdin, flush=True)
        return self.receive()

    def close(self) -> None:
        """End the peer."""
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
