"""Runs of ``jaxdqn run --engine ray`` in separate processes, for benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_START_SECONDS = 150
"""Maximum seconds from the command to the first record, on a busy machine."""


def records_of(options: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Run CartPole, or the environment in ``options``; return the records of the chunks.

    Args:
      options: options of ``jaxdqn run``.
      seconds: maximum seconds of training.

    Raises:
        RuntimeError: if the run fails, or has fewer than three records.
    """
    command = [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", *options]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*command, "--eval-every", "0", "--stop-when", "never", "--out", f"{scratch}/run"],
            env=environment_of_runs(),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS + seconds,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(options)}: {done.stderr.strip()[-500:]}")
        lines = Path(scratch, "run", "metrics.jsonl").read_text().splitlines()
    if len(lines) < 3:
        raise RuntimeError(f"{' '.join(options)}: {len(lines)} records, which give no rate")
    return [json.loads(line) for line in lines]


def environment_of_runs() -> dict[str, str]:
    """Return environment variables with this checkout before the current ``PYTHONPATH``, so that
    workers import it."""
    root, given = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
    path = root if not given else f"{root}{os.pathsep}{given}"
    return {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}


def rate(records: Sequence[dict[str, Any]], counter: str) -> float:
    """Return the rate of a counter per second of training, from the second to the last record.

    The first chunk includes compilation in the workers.
    """
    first, last = records[1], records[-1]
    return (last[counter] - first[counter]) / (last["train_seconds"] - first["train_seconds"])
