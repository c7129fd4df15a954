"""Compare jaxdqn with other libraries at a matched workload: ``python -m benchmarks.versus``."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks.processes import CPU_THREADS, Process, shared_device
from benchmarks.report import check_writable, describe, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS
from benchmarks.versus.at_best import AT_BEST, FILES, SOLVE_RETURN, at_best_table, compare_at_best
from benchmarks.versus.busy import Limits, Use, wait_until_quiet
from benchmarks.versus.matched import (
    PEERS,
    WORK,
    measure_peer,
    parse_peer,
    results_table,
    start_jaxdqn,
    work_of,
)
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.errors import RunFailed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Peer to measure, as NAME or NAME=ARGUMENT; repeat the flag for several. purejaxrl=FILE (its
    dqn.py), purejaxql=FILE (its pqn_minatar.py), sb3 or sb3=ENVS (number of environments), sbx or
    sbx=ENVS, cleanrl=FILE (its dqn_jax.py, in a checkout). sb3-host=K,B,M and sbx-host=K,B,M
    compare environments on the host: 8 of CartPole, MLP 64-64, M gradient steps of batch B after
    every K vector steps; by default 4,32,1. rllib compares its DQN with actors on Ray."""
    peer_python: str = sys.executable
    """Python interpreter in which the peers are installed."""
    rounds: int = 9
    """Rounds of measurement; each measures jaxdqn and the peer once."""
    at_best: bool = False
    """Instead of the matched workload, measure the time to solve and to hold CartPole-v1, each
    library at its own best settings: purejaxrl=FILE (dqn.py), purejaxql=FILE (pqn_gymnax.py), sb3.
    rllib and jaxdqn on Ray are trained at the matched workload until they solve CartPole-v1."""
    max_seconds: float | None = None
    """With --at-best and rllib: seconds of training and evaluation after which a learner counts as
    not having solved it. By default the limit is 500,000 rows."""
    seeds: int = 5
    """Seeds of each library with --at-best."""
    quick: bool = False
    """A tenth of the workload and three rounds: a first look, not a measurement."""
    peer_threads: int | None = None
    """Threads of XLA and PyTorch in the peers on CPU; by default one per core, as the peers choose
    themselves. jaxdqn uses one thread, as ``jaxdqn run`` does for networks of this size."""
    all: bool = False
    """Measure every peer: those of the package index, each in a new virtual environment with pinned
    versions, and those given by --peer NAME=FILE. They are measured at the matched workload and, if
    there is a driver for it, at their best settings."""
    environments: str = "~/.cache/jaxdqn/peers"
    """Directory of the virtual environments of --all. Finished environments are reused."""
    workload: Literal["matched", "milabench"] = "matched"
    """milabench: the workload of its purejaxrl benchmark (SpaceInvaders-MinAtar, 128 environments,
    a replay of 131,072, batch 65,536, 2 million steps), with the flat network and with a
    convolutional network; requires --peer purejaxrl=FILE."""
    scale: int = 1
    """With --workload milabench: divisor of environments, replay, batch and steps, for a quick
    trial."""
    busy_ok: bool = False
    """Measure even if other programs use the machine, with a warning; --quick always does."""
    max_load: float = 0.5
    """Load average per core above which the machine counts as busy."""
    max_cpu_share: float = 0.1
    """Share of the processors used by other programs above which the machine counts as busy."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/versus.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.versus", description=__doc__)
    peers = [parse_peer(peer) for peer in flags.peer]
    _check(flags)
    with shared_device():
        if flags.all:
            _measure_all(flags, peers)
        elif flags.workload == "milabench":
            _measure_milabench(flags, peers)
        elif flags.at_best:
            _measure_at_best(flags, peers)
        else:
            _measure_matched(flags, peers)


def _quiet(flags: Flags, patience: float = 0.0) -> Use:
    """Wait until the machine is quiet; return its use, with a warning if it is busy.

    Raises:
        ValueError: if it stays busy, without --busy-ok and --quick.
    """
    limits = Limits(flags.max_load, flags.max_cpu_share)
    seen = wait_until_quiet(limits, busy_ok=flags.busy_ok or flags.quick, patience=patience)
    if seen.exceeds(limits):
        print(f"warning: the machine is busy ({seen.describe()}); the ratios are not reliable")
    return seen


def _measure_matched(flags: Flags, peers: Sequence[tuple[str, str]]) -> None:
    """Measure peers at the matched workload, and report."""
    seen = _quiet(flags)
    rounds, divisor = (3, 10) if flags.quick else (flags.rounds, 1)
    report: dict[str, Any] = {"stamp": stamp(), "machine": seen.describe(), "work": WORK,
                              "rounds": rounds, "results": []}  # fmt: skip
    print(describe(report["stamp"]), f"machine: {report['machine']}", WORK, sep="\n")
    with ExitStack() as stack:
        jaxdqn: dict[str, Process] = {}
        compile_seconds, devices = {}, {}
        for work in dict.fromkeys(work_of(name, argument) for name, argument in peers):
            jaxdqn[work] = start_jaxdqn(work, divisor)
            stack.callback(jaxdqn[work].close)
            ready = jaxdqn[work].receive()
            if "missing" in ready:
                raise RunFailed(f"jaxdqn cannot run the work {work!r}: {ready['missing']}")
            compile_seconds[work], devices[work] = ready["compile_seconds"], ready["device_kind"]
            print(f"jaxdqn ({work}): compiled in {compile_seconds[work]:.1f} s")
        for name, argument in peers:
            work = work_of(name, argument)
            result = measure_peer(
                name, argument, jaxdqn[work], device_kind=devices[work], python=flags.peer_python,
                rounds=rounds, divisor=divisor, threads=flags.peer_threads,
            )  # fmt: skip
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
    if not flags.peer and not flags.all:
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
    if flags.scale < 1:
        raise ValueError(f"scale={flags.scale}: must be at least 1")
    for name in ("max_load", "max_cpu_share"):
        if getattr(flags, name) <= 0:
            raise ValueError(f"{name}={getattr(flags, name)}: must be above 0")
    if flags.all and (flags.at_best or flags.workload != "matched"):
        raise ValueError("all=True: must be given without --at-best and --workload")
    check_writable(flags.json)


def _measure_at_best(flags: Flags, peers: Sequence[tuple[str, str]]) -> None:
    """Measure the times to solve and to hold the environment, and report them."""
    for name, argument in peers:
        if name not in AT_BEST or (name == "sb3" and argument):
            raise ValueError(
                f"peer={name!r}: must be one of {', '.join(AT_BEST)} with at_best=True"
            )
    work = f"CartPole-v1, each library at its own best settings; solve return {SOLVE_RETURN:g}"
    seen = _quiet(flags)
    report: dict[str, Any] = {"stamp": stamp(), "machine": seen.describe(), "work": work}
    print(describe(report["stamp"]), f"machine: {report['machine']}", work, sep="\n")
    records = compare_at_best(
        peers,
        flags.seeds,
        flags.peer_python,
        flags.peer_threads,
        max_seconds=flags.max_seconds,
        device_kind=report["stamp"]["device_kind"],
    )
    print(at_best_table(records))
    for record in records:
        if "missing" in record:
            file = f" ({FILES[record['name']]})" if record["name"] in FILES else ""
            print(f"{record['name']}{file}: not measured completely: {record['missing']}")
    if flags.json is not None:
        write_json(flags.json, {**report, "results": records})
        print(f"measurements in {flags.json}")


def _measure_all(flags: Flags, peers: Sequence[tuple[str, str]]) -> None:
    """Build the environments of all peers, measure them, and report."""
    from benchmarks.versus.environments import build_environment, jax_extra
    from benchmarks.versus.every_peer import compare_all, missing_lines

    stamped = stamp()
    report = compare_all(
        peers,
        directory=Path(flags.environments).expanduser(),
        build=partial(build_environment, extra=jax_extra(stamped["platform"])),
        quiet=partial(_quiet, flags),
        device_kind=stamped["device_kind"],
        rounds=3 if flags.quick else flags.rounds,
        seeds=1 if flags.quick else flags.seeds,
        divisor=10 if flags.quick else 1,
        threads=flags.peer_threads,
    )
    report = {"stamp": stamped, "work": WORK, **report}
    print(describe(report["stamp"]), f"machine: {report['machine']}", WORK, sep="\n")
    measured = [each for each in report["matched"] if "missing" not in each]
    if measured:
        print(f"{MEDIANS}; {RATIOS}", results_table(measured), sep="\n")
    if report["at_best"]:
        print(at_best_table(report["at_best"]))
    for line in missing_lines(report):
        print(line)
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def _measure_milabench(flags: Flags, peers: Sequence[tuple[str, str]]) -> None:
    """Measure milabench's workload with both networks, and report."""
    from benchmarks.versus.milabench import compare_milabench

    if [name for name, _ in peers] != ["purejaxrl"]:
        raise ValueError("peer: must be purejaxrl=FILE, and no other, with workload='milabench'")
    seen = _quiet(flags)
    report: dict[str, Any] = {"stamp": stamp(), "machine": seen.describe()}
    print(describe(report["stamp"]), f"machine: {report['machine']}", sep="\n")
    report["results"] = compare_milabench(
        peers[0][1], flags.scale, python=flags.peer_python, rounds=flags.rounds,
        threads=flags.peer_threads,
    )  # fmt: skip
    measured = [each for each in report["results"] if "missing" not in each]
    for each in report["results"]:
        if "missing" in each:
            print(f"{each['peer']}: not measured: {each['missing']}")
    if measured:
        print(f"{MEDIANS}; {RATIOS}", results_table(measured), sep="\n")
    if flags.json is not None:
        write_json(flags.json, {**report, "scale": flags.scale})
        print(f"measurements in {flags.json}")


if __name__ == "__main__":
    sys.exit(main())
