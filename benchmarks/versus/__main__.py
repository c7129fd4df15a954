"""Measure jaxdqn against its peers at matched work: ``python -m benchmarks.versus``."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

import tyro

from benchmarks.host import name_of
from benchmarks.processes import CPU_THREADS, Process
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, alternating, median_interval, spread, verdict
from benchmarks.versus.at_best import AT_BEST, FILES, SOLVE_RETURN, at_best_table, compare_at_best
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.errors import known_name

WORK = (
    "CartPole-v1, one gradient step of batch 128 per 10 environment steps, replay of 10 000, "
    "MLP 120-84, Adam, epsilon 0.05. Environments: jaxdqn and purejaxrl 10, CleanRL 1, "
    "Stable-Baselines3 and SBX 1 or ENVS. purejaxql: PQN on Breakout-MinAtar, 128 environments, "
    "32 steps, 32 minibatches, 2 epochs, convolution. sb3-host and sbx-host: CartPole-v1 in 8 "
    "environments on the host, MLP 64-64. rllib: RLlib's DQN with 2 environment runners of 5 "
    "environments and prioritised replay; jaxdqn on Ray with 2 actors"
)


class Peer(NamedTuple):
    """Peer that ``peers.py`` can drive."""

    bar: float
    """Required ratio of jaxdqn's gradient steps/s to the peer's."""
    gradient_steps: int
    """Gradient steps per measurement."""
    work: str = "matched"
    """Name of the work for ``benchmarks.versus.jaxdqn_driver``."""


PEERS = {
    "purejaxrl": Peer(bar=1.15, gradient_steps=10_000),
    "purejaxql": Peer(bar=6.0, gradient_steps=256, work="pqn"),
    "sb3": Peer(bar=12.0, gradient_steps=400),
    "sbx": Peer(bar=12.0, gradient_steps=400),
    "cleanrl": Peer(bar=12.0, gradient_steps=400),
    "sb3-host": Peer(bar=2.2, gradient_steps=512, work="host"),
    "sbx-host": Peer(bar=2.6, gradient_steps=512, work="host"),
    "rllib": Peer(bar=10.0, gradient_steps=200, work="ray"),
}
CADENCE = "4,32,1"
BARS = {("sb3-host", "32,64,16"): 4.5}
"""Bars of other cadences than ``CADENCE``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Peer to measure, as NAME or NAME=ARGUMENT; repeat the flag for several. purejaxrl=FILE (its
    dqn.py), purejaxql=FILE (its pqn_minatar.py), sb3 or sb3=ENVS (number of environments), sbx or
    sbx=ENVS, cleanrl=FILE (its dqn_jax.py, in a checkout). sb3-host=K,B,M and sbx-host=K,B,M
    compare environments on the host: 8 of CartPole, MLP 64-64, M gradient steps of batch B after
    every K vector steps; by default 4,32,1. rllib compares its DQN with actors on Ray."""
    peer_python: str = sys.executable
    """Python interpreter that has the peers installed."""
    rounds: int = 9
    """Rounds of measurement; each measures jaxdqn and the peer once."""
    at_best: bool = False
    """Measure the time to solve CartPole-v1 and to hold it instead, each library at its own best
    settings: purejaxrl=FILE (dqn.py), purejaxql=FILE (pqn_gymnax.py), sb3. rllib is trained at the
    matched work until it has solved CartPole-v1, as jaxdqn on Ray is."""
    max_seconds: float | None = None
    """With --at-best and rllib: seconds of training and evaluation after which a learner counts as
    one that has not solved it; by default it has 500,000 rows."""
    seeds: int = 5
    """Seeds of each library with --at-best."""
    quick: bool = False
    """A tenth of the work and three rounds: a first look, not a measurement."""
    peer_threads: int | None = None
    """Threads of XLA and PyTorch in the peers on CPU; by default one per core, the peers' own
    default. jaxdqn uses one, as ``jaxdqn run`` does for networks of this size."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/versus.json."""


def compare(name: str, peer: Any, jaxdqn: Any, rounds: int, bar: float) -> dict[str, Any]:
    """Measure jaxdqn and a peer alternately.

    Args:
        name: name of the peer.
        peer: process whose ``measure()`` does the peer's work once.
        jaxdqn: likewise for jaxdqn.
        rounds: measurements of each.
        bar: required ratio.

    Returns:
        Name of the peer, gradient and environment steps/s of both, and the ratio of the gradient
        steps/s; or the name and ``missing``, the reason why there is no measurement.
    """
    measured: dict[str, list[dict[str, Any]]] = {"jaxdqn": [], "peer": []}
    processes = {"jaxdqn": jaxdqn, "peer": peer}
    peer.measure()  # to warm up; a failure shows in the next measurement
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.versus", description=__doc__)
    peers = [_parse_peer(peer) for peer in flags.peer]
    _check(flags)
    if flags.at_best:
        _measure_at_best(flags, peers)
        return
    rounds, divisor = (3, 10) if flags.quick else (flags.rounds, 1)
    report: dict[str, Any] = {"stamp": stamp(), "work": WORK, "rounds": rounds, "results": []}
    print(describe(report["stamp"]), WORK, sep="\n")
    with ExitStack() as stack:
        jaxdqn: dict[str, Process] = {}
        compile_seconds = {}
        for work in dict.fromkeys(_work_of(name, argument) for name, argument in peers):
            jaxdqn[work] = _start_jaxdqn(work, divisor)
            stack.callback(jaxdqn[work].close)
            compile_seconds[work] = jaxdqn[work].receive()["compile_seconds"]
            print(f"jaxdqn ({work}): compiled in {compile_seconds[work]:.1f} s")
        for name, argument in peers:
            process = jaxdqn[_work_of(name, argument)]
            result = _measure_peer(flags, name, argument, process, rounds, divisor)
            report["results"].append(result)
            if "missing" in result:
                source = f"; get it: {result['get']}" if "get" in result else ""
                print(f"{name}: not measured: {result['missing']}{source}")
    measured = [result for result in report["results"] if "missing" not in result]
    if measured:
        print(f"{MEDIANS}; {RATIOS}")
        print(results_table(measured))
    if flags.json is not None:
        threads = {"cpu_threads": CPU_THREADS, "peer_threads": flags.peer_threads}
        compiled = {"jaxdqn_compile_seconds": compile_seconds}
        write_json(flags.json, {**report, **threads, **compiled})
        print(f"measurements in {flags.json}")


def _check(flags: Flags) -> None:
    """Raise if a flag is invalid."""
    if not flags.peer:
        raise ValueError(f"peer=(): must name at least one of {', '.join(PEERS)}; see --help")
    if flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    if flags.seeds < 1:
        raise ValueError(f"seeds={flags.seeds}: must be at least 1")
    if flags.max_seconds is not None and not flags.max_seconds > 0:
        raise ValueError(f"max_seconds={flags.max_seconds}: must be above 0")
    if flags.max_seconds is not None and not (flags.at_best and "rllib" in flags.peer):
        raise ValueError(
            f"max_seconds={flags.max_seconds}: must be left out without at_best=True and the peer "
            "rllib"
        )
    if flags.peer_threads is not None and flags.peer_threads < 1:
        raise ValueError(f"peer_threads={flags.peer_threads}: must be at least 1")
    if shutil.which(flags.peer_python) is None:
        raise ValueError(f"peer_python={flags.peer_python!r}: must be a Python interpreter")
    check_writable(flags.json)


def _measure_at_best(flags: Flags, peers: Sequence[tuple[str, str]]) -> None:
    """Measure the times to solve and to hold, and report them."""
    for name, argument in peers:
        if name not in AT_BEST or (name == "sb3" and argument):
            raise ValueError(
                f"peer={name!r}: must be one of {', '.join(AT_BEST)} with at_best=True"
            )
    work = f"CartPole-v1, each library at its own best settings; solve return {SOLVE_RETURN:g}"
    report: dict[str, Any] = {"stamp": stamp(), "work": work}
    print(describe(report["stamp"]), work, sep="\n")
    records = compare_at_best(
        peers,
        flags.seeds,
        flags.peer_python,
        flags.peer_threads,
        max_seconds=flags.max_seconds,
    )
    print(at_best_table(records))
    for record in records:
        if "missing" in record:
            file = f" ({FILES[record['name']]})" if record["name"] in FILES else ""
            print(f"{record['name']}{file}: not measured completely: {record['missing']}")
    if flags.json is not None:
        write_json(flags.json, {**report, "results": records})
        print(f"measurements in {flags.json}")


def _start_jaxdqn(work: str, divisor: int) -> Process:
    """Start jaxdqn on the work of some peers, with the threads that it chooses for that work."""
    if work.startswith("host:"):
        steps = max(64, PEERS["sb3-host"].gradient_steps // divisor)
        return Process.jaxdqn(steps, CPU_THREADS, "stop", work)
    if work == "ray":
        steps = max(64, 5 * PEERS["rllib"].gradient_steps // divisor)
        return Process.jaxdqn(steps, CPU_THREADS, "stop", work)
    if work == "pqn":
        steps = max(64, PEERS["purejaxql"].gradient_steps // divisor)
        return Process.jaxdqn(steps, None, "stop", work)
    return Process.jaxdqn(PEERS["purejaxrl"].gradient_steps // divisor, CPU_THREADS)


def _work_of(name: str, argument: str) -> str:
    """Return the work of a peer, as ``benchmarks.versus.jaxdqn_driver`` names it."""
    work = PEERS[name].work
    return f"host:{argument}" if work == "host" else work


def _measure_peer(
    flags: Flags, name: str, argument: str, jaxdqn: Process, rounds: int, divisor: int
) -> dict[str, Any]:
    """Start a peer, compare jaxdqn with it, and end it."""
    label = f"{name} ({argument} environments)" if argument.isdigit() else name
    if PEERS[name].work == "host":
        label = f"{name} {name_of(argument)}"
    bar = BARS.get((name, argument), PEERS[name].bar)
    steps = max(64, PEERS[name].gradient_steps // divisor)
    process = Process.peer(flags.peer_python, name, argument, steps, flags.peer_threads)
    try:
        ready = process.receive()
        if "missing" in ready:
            return {"peer": label, **ready}
        return {**ready, **compare(label, process, jaxdqn, rounds, bar)}
    finally:
        process.close()


def _parse_peer(peer: str) -> tuple[str, str]:
    """Return the name and the argument of a peer.

    Raises:
        ValueError: if there is no such peer or its argument is invalid.
    """
    name, _, argument = peer.partition("=")
    if name not in PEERS:
        raise ValueError(f"peer={name!r}: must be {known_name('peer', name, list(PEERS))}")
    if PEERS[name].work == "host":
        name_of(argument or CADENCE)
        return name, argument or CADENCE
    takes_count = name in ("sb3", "sbx")
    if takes_count and argument and not (argument.isdigit() and 10 % max(int(argument), 1) == 0):
        raise ValueError(f"peer={peer!r}: must be {name}=ENVS with ENVS dividing 10")
    if name == "rllib":
        if argument:
            raise ValueError(f"peer={peer!r}: must be rllib, without an argument")
        return name, ""
    if not takes_count and not argument:
        raise ValueError(f"peer={peer!r}: must be {name}=FILE")
    return name, argument


if __name__ == "__main__":
    sys.exit(main())
