"""Measure jaxdqn against its peers at matched work: ``python -m benchmarks.versus``."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import tyro

from benchmarks.processes import CPU_THREADS, Process
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import OF_MEDIAN, Interval, median_interval, spread
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.errors import suggest

WORK = (
    "CartPole-v1, a gradient step of batch 128 every 10 environment steps, a ring of 10 000, "
    "MLP 120-84, Adam, epsilon 0.05; jaxdqn and purejaxrl step 10 environments together, "
    "CleanRL 1, Stable-Baselines3 and SBX 1 unless told. purejaxql: PQN on Breakout-MinAtar, "
    "128 environments, 32 steps, 32 minibatches, 2 epochs, convolution"
)


class Peer(NamedTuple):
    """A peer that ``peers.py`` can drive."""

    bar: float
    """jaxdqn's gradient steps/s over the peer's."""
    gradient_steps: int
    """Work of one measurement."""
    work: str = "matched"
    """As ``benchmarks.versus.jaxdqn_driver`` names it."""


PEERS = {
    "purejaxrl": Peer(bar=1.15, gradient_steps=10_000),
    "purejaxql": Peer(bar=6.0, gradient_steps=256, work="pqn"),
    "sb3": Peer(bar=12.0, gradient_steps=400),
    "sbx": Peer(bar=12.0, gradient_steps=400),
    "cleanrl": Peer(bar=12.0, gradient_steps=400),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A peer to measure, NAME[=ARGUMENT], given once for each: purejaxrl=FILE (its
    dqn.py), purejaxql=FILE (its pqn_minatar.py), sb3 or sb3=ENVS (environments stepped
    together), sbx, sbx=ENVS, cleanrl=FILE (its dqn_jax.py, in a checkout)."""
    peer_python: str = sys.executable
    """Interpreter that has the peers."""
    rounds: int = 9
    """Alternations of jaxdqn and each peer."""
    quick: bool = False
    """A tenth of the work and three alternations: figures to look at, not to keep."""
    peer_threads: int | None = None
    """Threads that XLA uses on CPU in the peers; by default as many as there are cores, as they
    come. jaxdqn uses one, as ``jaxdqn run`` does for networks of this size."""
    json: str | None = None
    """File to write the measurements to, such as benchmarks/results/versus.json."""


def compare(name: str, peer: Any, own: Any, rounds: int, bar: float) -> dict[str, Any]:
    """Alternate jaxdqn and a peer, each first every other round.

    Args:
      peer: its ``measure()`` does its work once.
      own: likewise for jaxdqn.

    Returns:
      The peer's name, gradient and environment steps/s of both, and the ratio of
      the gradient steps/s; or the name and what is missing.
    """
    measured: dict[str, list[dict[str, Any]]] = {"jaxdqn": [], "peer": []}
    runners = {"jaxdqn": own, "peer": peer}
    peer.measure()  # once to warm up; what fails shows in the next
    for turn in range(rounds):
        for side in list(runners)[:: 1 if turn % 2 == 0 else -1]:
            answer = runners[side].measure()
            if "missing" in answer:
                return {"peer": name, **answer}
            measured[side].append(answer)

    def rates(side: str, what: str) -> list[float]:
        return [answer[what] / answer["seconds"] for answer in measured[side]]

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
    """Return the table of peers measured."""
    rows = [
        [
            each["peer"],
            each["compile_seconds"],
            each["env_steps_per_second"],
            each["gradient_steps_per_second"],
            each["jaxdqn_gradient_steps_per_second"],
            each["ratio"],
            _verdict(each["ratio"], each["bar"]),
        ]
        for each in results
    ]
    headers = ["peer", "compile s", "env steps/s", "gradient steps/s", "jaxdqn gradient steps/s"]
    return format_table([*headers, "ratio", "bar"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.versus", description=__doc__)
    asked = [_named(peer) for peer in flags.peer]
    if not asked:
        raise ValueError(f"peer=(): must be at least one of {', '.join(PEERS)}; see --help")
    if flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    if flags.peer_threads is not None and flags.peer_threads < 1:
        raise ValueError(f"peer_threads={flags.peer_threads}: must be at least 1")
    if shutil.which(flags.peer_python) is None:
        raise ValueError(f"peer_python={flags.peer_python!r}: must be an interpreter's file")
    check_writable(flags.json)
    rounds, divisor = (3, 10) if flags.quick else (flags.rounds, 1)
    report: dict[str, Any] = {"stamp": stamp(), "work": WORK, "rounds": rounds, "results": []}
    print(describe(report["stamp"]), WORK, sep="\n")
    owns: dict[str, Process] = {}
    compile_seconds = {}
    for work in dict.fromkeys(PEERS[name].work for name, _ in asked):
        owns[work] = _own(work, divisor)
        compile_seconds[work] = owns[work].receive()["compile_seconds"]
        print(f"jaxdqn ({work}): compiled in {compile_seconds[work]:.1f} s")
    for name, argument in asked:
        own = owns[PEERS[name].work]
        result = _measure_peer(flags, name, argument, own, rounds, divisor)
        if "missing" in result:
            how = f"; get it: {result['get']}" if "get" in result else ""
            print(f"{name}: not installed or not working: {result['missing']}{how}")
        report["results"].append(result)
    done = [each for each in report["results"] if "missing" not in each]
    if done:
        print(f"medians (least-greatest); of ratios the median and {OF_MEDIAN}")
        print(results_table(done))
    for own in owns.values():
        own.close()
    if flags.json is not None:
        threads = {"cpu_threads": CPU_THREADS, "peer_threads": flags.peer_threads}
        compiled = {"jaxdqn_compile_seconds": compile_seconds}
        write_json(flags.json, {**report, **threads, **compiled})
        print(f"measurements in {flags.json}")


def _own(work: str, divisor: int) -> Process:
    """Start jaxdqn at the work of some peers, with the threads that it chooses for that."""
    if work == "pqn":
        return Process.own(
            max(64, PEERS["purejaxql"].gradient_steps // divisor), None, "stop", work
        )
    return Process.own(PEERS["purejaxrl"].gradient_steps // divisor, CPU_THREADS)


def _measure_peer(
    flags: Flags, name: str, argument: str, own: Process, rounds: int, divisor: int
) -> dict[str, Any]:
    """Start a peer, alternate with it, end it."""
    label = f"{name} ({argument} environments)" if argument.isdigit() else name
    steps = max(64, PEERS[name].gradient_steps // divisor)
    process = Process.peer(flags.peer_python, name, argument, steps, flags.peer_threads)
    try:
        ready = process.receive()
        if "missing" in ready:
            return {"peer": label, **ready}
        return {**ready, **compare(label, process, own, rounds, PEERS[name].bar)}
    finally:
        process.close()


def _named(peer: str) -> tuple[str, str]:
    """Return a peer's name and argument.

    Raises:
      ValueError: if there is no such peer, or its argument is wrong.
    """
    name, _, argument = peer.partition("=")
    if name not in PEERS:
        raise ValueError(f"peer={name!r}: must be one of {suggest(name, list(PEERS))}")
    counted = name in ("sb3", "sbx")
    if counted and argument and not (argument.isdigit() and 10 % max(int(argument), 1) == 0):
        raise ValueError(f"peer={peer!r}: must be {name}=ENVS with ENVS dividing 10")
    if not counted and not argument:
        raise ValueError(f"peer={peer!r}: must be {name}=FILE")
    return name, argument


def _verdict(measured: Interval, bar: float) -> str:
    """Say whether the whole interval is at or above the bar, below it, or neither."""
    if measured.low >= bar:
        return f">= {bar:g}: reached"
    return f">= {bar:g}: missed" if measured.high < bar else f">= {bar:g}: undecided"


if __name__ == "__main__":
    sys.exit(main())
