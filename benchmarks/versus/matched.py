"""Matched-workload comparison: jaxdqn and a peer, in separate processes, measured alternately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.host import name_of
from benchmarks.processes import CPU_THREADS, Process
from benchmarks.report import format_table
from benchmarks.timing import alternating, median_interval, spread, verdict
from jaxdqn.errors import known_name

WORK = (
    "CartPole-v1, one gradient step of batch 128 per 10 environment steps, replay of 10 000, "
    "MLP 120-84, Adam, epsilon 0.05. Environments: jaxdqn, purejaxrl and rejax 10, CleanRL and "
    "TorchRL 1, Stable-Baselines3 and SBX 1, or ENVS in sb3=ENVS. purejaxql: PQN on "
    "Breakout-MinAtar, 128 environments, 32 steps, 32 minibatches, 2 epochs, convolution. "
    "sb3-host and sbx-host: CartPole-v1 in 8 environments on the host, MLP 64-64. rllib: RLlib's "
    "DQN with 2 environment runners of 5 environments and prioritised replay; jaxdqn on Ray with 2 "
    "actors. flashbax: inserting 10 transitions and sampling 128, without a network"
)


class Peer(NamedTuple):
    """Peer that ``peers.py`` can drive."""

    bar: float
    """Required ratio of jaxdqn's gradient steps/s to the peer's."""
    gradient_steps: int
    """Gradient steps per measurement."""
    work: str = "matched"
    """Name of the workload for ``benchmarks.versus.jaxdqn_driver``."""


PEERS = {
    "purejaxrl": Peer(bar=1.15, gradient_steps=10_000),
    "purejaxql": Peer(bar=6.0, gradient_steps=256, work="pqn"),
    "rejax": Peer(bar=1.15, gradient_steps=10_000),
    "flashbax": Peer(bar=0.95, gradient_steps=10_000, work="replay"),
    "torchrl": Peer(bar=12.0, gradient_steps=200),
    "sb3": Peer(bar=12.0, gradient_steps=400),
    "sbx": Peer(bar=12.0, gradient_steps=400),
    "cleanrl": Peer(bar=12.0, gradient_steps=400),
    "sb3-host": Peer(bar=2.2, gradient_steps=512, work="host"),
    "sbx-host": Peer(bar=2.6, gradient_steps=512, work="host"),
    "rllib": Peer(bar=10.0, gradient_steps=200, work="ray"),
}
CADENCE = "4,32,1"
"""Vector steps per iteration, batch size and gradient steps per iteration."""
BARS = {("sb3-host", "32,64,16"): 4.5}
"""Required ratios at cadences other than ``CADENCE``."""
INSTALLED = ("rllib", "rejax", "flashbax", "torchrl")
"""Peers without an argument."""


def compare(name: str, peer: Any, jaxdqn: Any, rounds: int, bar: float) -> dict[str, Any]:
    """Measure jaxdqn and a peer alternately.

    Args:
        name: name of the peer.
        peer: process whose ``measure()`` runs the peer's workload once.
        jaxdqn: likewise for jaxdqn.
        rounds: number of measurements of each.
        bar: required ratio.

    Returns:
        Name of the peer, gradient and environment steps/s of both, the ratio of the gradient
        steps/s and the required ratio. If a measurement fails: the name, and the reason as
        ``missing``.
    """
    measured: dict[str, list[dict[str, Any]]] = {"jaxdqn": [], "peer": []}
    processes = {"jaxdqn": jaxdqn, "peer": peer}
    peer.measure()  # warm-up; a failure appears in the next measurement
    for side in alternating(processes, rounds):
        answer = processes[side].measure()
        if "missing" in answer:
            return {"peer": name, **answer}
        measured[side].append(answer)

    def rates(side: str, count: str) -> list[float]:
        return [answer[count] / answer["seconds"] for answer in measured[side]]

    pairs = zip(rates("jaxdqn", "gradient_steps"), rates("peer", "gradient_steps"), strict=True)
    return {
        "peer": name,
        "gradient_steps_per_second": spread(rates("peer", "gradient_steps")),
        "env_steps_per_second": spread(rates("peer", "env_steps")),
        "jaxdqn_gradient_steps_per_second": spread(rates("jaxdqn", "gradient_steps")),
        "jaxdqn_env_steps_per_second": spread(rates("jaxdqn", "env_steps")),
        "ratio": median_interval([ours / theirs for ours, theirs in pairs]),
        "bar": bar,
    }


def device_mismatch(ours: Any, theirs: Any) -> str | None:
    """Return why two devices cannot be compared; None if they are of the same kind."""
    if ours == theirs:
        return None
    return f"device_kind={theirs!r}: must be {ours!r}, the device of jaxdqn"


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """Format the table of the measured peers."""
    rows = [
        [
            result["peer"],
            result["compile_seconds"],
            result["env_steps_per_second"],
            result["gradient_steps_per_second"],
            result["jaxdqn_gradient_steps_per_second"],
            result["ratio"],
            verdict(result["ratio"], result["bar"], higher_is_better=True),
        ]
        for result in results
    ]
    headers = ["peer", "compile s", "env steps/s", "gradient steps/s", "jaxdqn gradient steps/s"]
    return format_table([*headers, "ratio", "bar"], rows)


def start_jaxdqn(work: str, divisor: int) -> Process:
    """Start a process of jaxdqn for a workload, with the thread count set for that workload."""
    if work.startswith("host:"):
        steps = max(64, PEERS["sb3-host"].gradient_steps // divisor)
        return Process.jaxdqn(steps, CPU_THREADS, "stop", work)
    if work == "ray":
        steps = max(64, 5 * PEERS["rllib"].gradient_steps // divisor)
        return Process.jaxdqn(steps, CPU_THREADS, "stop", work)
    if work == "replay":
        return Process.jaxdqn(PEERS["flashbax"].gradient_steps // divisor, None, "stop", work)
    if work == "pqn":
        steps = max(64, PEERS["purejaxql"].gradient_steps // divisor)
        return Process.jaxdqn(steps, None, "stop", work)
    return Process.jaxdqn(PEERS["purejaxrl"].gradient_steps // divisor, CPU_THREADS)


def work_of(name: str, argument: str) -> str:
    """Return the name of a peer's workload in ``benchmarks.versus.jaxdqn_driver``."""
    work = PEERS[name].work
    return f"host:{argument}" if work == "host" else work


def measure_peer(
    name: str,
    argument: str,
    jaxdqn: Any,
    *,
    device_kind: str,
    python: str,
    rounds: int,
    divisor: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:
    """Start the process of a peer, measure it and jaxdqn alternately, and stop it.

    Args:
        name: name of the peer.
        argument: environments, file or cadence, depending on the peer; may be empty.
        jaxdqn: process of jaxdqn on the same workload.
        device_kind: kind of the device of jaxdqn. A peer on another device is not measured.
        python: interpreter in which the peer is installed.
        rounds: number of measurements of each.
        divisor: divisor of the gradient steps of a measurement.
        threads: CPU threads for XLA and PyTorch in the peer; None for one per core.
    """
    label = f"{name} ({argument} environments)" if argument.isdigit() else name
    if PEERS[name].work == "host":
        label = f"{name} {name_of(argument)}"
    bar = BARS.get((name, argument), PEERS[name].bar)
    steps = max(64, PEERS[name].gradient_steps // divisor)
    process = Process.peer(python, name, argument, steps, threads)
    try:
        ready = process.receive()
        if "missing" in ready:
            return {"peer": label, **ready}
        mismatch = device_mismatch(device_kind, ready.get("device_kind"))
        if mismatch is not None:
            return {"peer": label, **ready, "missing": mismatch}
        return {
            **ready,
            "jaxdqn_device_kind": device_kind,
            **compare(label, process, jaxdqn, rounds, bar),
        }
    finally:
        process.close()


def parse_peer(peer: str) -> tuple[str, str]:
    """Return the name and the argument of a peer.

    Raises:
        ValueError: if the peer is unknown or its argument is invalid.
    """
    name, _, argument = peer.partition("=")
    if name not in PEERS:
        raise ValueError(f"peer={name!r}: must be {known_name('peer', name, list(PEERS))}")
    if PEERS[name].work == "host":
        name_of(argument or CADENCE)
        return name, argument or CADENCE
    takes_count = name in ("sb3", "sbx")
    if takes_count and argument and argument not in ("1", "2", "5", "10"):
        raise ValueError(f"peer={peer!r}: must be {name}, or {name}=ENVS with ENVS 1, 2, 5 or 10")
    if name in INSTALLED:
        if argument:
            raise ValueError(f"peer={peer!r}: must be {name}, without an argument")
        return name, ""
    if not takes_count and not argument:
        raise ValueError(f"peer={peer!r}: must be {name}=FILE")
    return name, argument
