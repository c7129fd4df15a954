"""Milabench's workload for purejaxrl's DQN, with an MLP as published and with a convolution."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.processes import CPU_THREADS, Process
from benchmarks.versus.drivers.work import milabench
from benchmarks.versus.matched import compare, device_mismatch

NETWORKS = ("flat", "convolution")
_BAR = 3.0
"""Required ratio of jaxdqn's gradient steps/s to those of purejaxrl."""


def compare_milabench(
    file: str, scale: int, *, python: str, rounds: int, threads: int | None = None
) -> list[dict[str, Any]]:
    """Measure jaxdqn and purejaxrl alternately, with each network.

    Args:
        file: purejaxrl's dqn.py.
        scale: divisor of the workload's sizes; 1 for the complete workload.
        python: interpreter with the requirements of purejaxrl.
        rounds: number of measurements of each.
        threads: CPU threads for XLA in the peer; None for one per core.
    """
    work = milabench(scale)
    steps = work.rows // work.rows_per_gradient_step
    results = []
    for network in NETWORKS:
        label = f"purejaxrl, milabench, {network}"
        argument = json.dumps({"file": file, "network": network, "scale": scale})
        small = scale > 1
        jaxdqn = Process.jaxdqn(
            steps, CPU_THREADS if small else None, "stop", f"milabench:{network}:{scale}"
        )
        peer = Process.peer(python, "purejaxrl-milabench", argument, steps, threads)
        try:
            ours, theirs = jaxdqn.receive(), peer.receive()
            missing = next((each for each in (theirs, ours) if "missing" in each), None)
            if missing is None:
                mismatch = device_mismatch(ours["device_kind"], theirs.get("device_kind"))
                missing = None if mismatch is None else {**theirs, "missing": mismatch}
            if missing is not None:
                results.append({"peer": label, **missing})
                continue
            compiled = {
                "jaxdqn_compile_seconds": ours["compile_seconds"],
                "jaxdqn_device_kind": ours["device_kind"],
            }
            compared = compare(label, peer, jaxdqn, rounds, _BAR)
            results.append({**theirs, **compiled, "work": work._asdict(), **compared})
        finally:
            jaxdqn.close()
            peer.close()
    return results
