"""Measure jaxdqn against its peers at matched work: ``python -m benchmarks.versus``."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from benchmarks.timing import (
    Case,
    Interval,
    check_writable,
    compile_cold,
    describe,
    format_table,
    median_interval,
    spread,
    stamp,
    write_json,
)
from experiments.command_line import guard, parse
from jaxdqn.config import suggest

WORK = (
    "CartPole-v1, a gradient step of batch 128 every 10 environment steps, a ring of 10 000, "
    "MLP 120-84, Adam, epsilon 0.05; jaxdqn and purejaxrl step 10 environments together, "
    "CleanRL 1, Stable-Baselines3 and SBX 1 unless told"
)


class Peer(NamedTuple):
    """A peer that ``peers.py`` can drive."""

    bar: float
    """jaxdqn's gradient steps/s over the peer's."""
    gradient_steps: int
    """Work of one measurement."""


PEERS = {
    "purejaxrl": Peer(bar=1.15, gradient_steps=10_000),
    "sb3": Peer(bar=12.0, gradient_steps=400),
    "sbx": Peer(bar=12.0, gradient_steps=400),
    "cleanrl": Peer(bar=12.0, gradient_steps=400),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A peer to measure, NAME[=ARGUMENT], given once for each: purejaxrl=FILE (its
    dqn.py), sb3 or sb3=ENVS (environments stepped together), sbx, sbx=ENVS,
    cleanrl=FILE (its dqn_jax.py, in a checkout)."""
    peer_python: str = sys.executable
    """Interpreter that has the peers."""
    rounds: int = 9
    """Alternations of jaxdqn and each peer."""
    quick: bool = False
    """A tenth of the work and three alternations: figures to look at, not to keep."""
    json: str | None = None
    """File to write the measurements to, such as benchmarks/results/versus.json."""


class Process:
    """A peer in an interpreter of its own; between requests it waits."""

    def __init__(self, python: str, name: str, argument: str, gradient_steps: int) -> None:
        driver = Path(__file__).with_name("peers.py")
        # -P: the driver's directory is not searched for the peer's imports.
        command = [python, "-P", str(driver), name, argument, str(gradient_steps)]
        self._errors: list[str] = []
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if not os.environ.get("VERSUS_STDERR") else None,
                text=True,
            )
        except OSError as error:
            raise ValueError(f"peer_python={python!r}: {error.strerror}") from None

    def receive(self) -> dict[str, Any]:
        """Wait for the peer's next message."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            return {"missing": f"it ended with exit code {code}", "get": "see VERSUS_STDERR=1"}
        return json.loads(line)

    def measure(self) -> dict[str, Any]:
        """Have the peer do its work once."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return self.receive()

    def close(self) -> None:
        """End the peer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
