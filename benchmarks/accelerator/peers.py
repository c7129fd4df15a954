"""Other libraries on the same device, through ``benchmarks.versus``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accelerator.plan import Cell, Sizes

SUPPORTED = ("purejaxrl", "purejaxql")
"""Peers that run on the default device of JAX."""


def peer_cells(peers: Sequence[str], python: str, sizes: Sizes) -> list[Cell]:
    """Return a cell for each peer, given as NAME=FILE; all are run by one interpreter."""
    return [
        Cell(peer.partition("=")[0], partial(measure_peer, peer, python, sizes)) for peer in peers
    ]


def check_peers(peers: Sequence[str], python: str) -> None:
    """Check the peers and their interpreter before anything is measured.

    Raises:
        ValueError: if a peer is not NAME=FILE with a known name and an existing file, or the
            interpreter does not exist.
    """
    if shutil.which(python) is None:
        raise ValueError(f"peer_python={python!r}: must be a Python interpreter")
    for peer in peers:
        name, _, file = peer.partition("=")
        if name not in SUPPORTED or not file:
            known = " or ".join(f"{each}=FILE" for each in SUPPORTED)
            raise ValueError(f"peer={peer!r}: must be {known}")
        if not Path(file).is_file():
            raise ValueError(f"peer={peer!r}: must name a file; there is no {file}")


def measure_peer(peer: str, python: str, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Measure a peer and jaxdqn alternately on the peer's workload, by ``benchmarks.versus``.

    Args:
        peer: NAME=FILE.
        python: interpreter in which the peer is installed.
        sizes: amount of work.
        seconds: time limit.

    Raises:
        RuntimeError: if the peer could not be measured, with its reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "versus.json"
        command = [sys.executable, "-m", "benchmarks.versus", "--peer", peer, "--json", str(file)]
        # The sections before this one are the load that versus would reject.
        command += ["--peer-python", python, "--busy-ok"]
        command += ["--rounds", "5"] if not sizes.shrunk else ["--quick"]
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        result = json.loads(file.read_text())["results"][0]
    if "missing" in result:
        raise RuntimeError(result["missing"])
    return result
