"""Comparison with every peer: environments, matched workload, and best settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.versus.at_best import AT_BEST, compare_at_best
from benchmarks.versus.busy import Use
from benchmarks.versus.environments import Built
from benchmarks.versus.matched import CADENCE, measure_peer, start_jaxdqn, work_of

FROM_INDEX = ("sb3", "sbx", "rllib", "rejax", "flashbax", "torchrl", "sb3-host", "sbx-host")
"""Peers of the package index."""
FROM_FILES = {
    "purejaxrl": "its dqn.py",
    "purejaxql": "its pqn_minatar.py",
    "cleanrl": "its dqn_jax.py, in a checkout",
}
"""Peers given by --peer NAME=FILE, and the file that each needs."""
_AT_BEST_FILES = {"purejaxql": "pqn_gymnax.py"}
"""File in the same directory that the comparison at best settings uses."""
_PATIENCE = 180.0
"""Seconds to wait for the load of the installations to fall."""


def compare_all(
    given: Sequence[tuple[str, str]],
    *,
    directory: Path,
    build: Callable[[str, Path], Built],
    quiet: Callable[[float], Use],
    device_kind: str,
    rounds: int,
    seeds: int,
    divisor: int = 1,
    threads: int | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every peer that can be built or is given.

    Args:
        given: names and arguments of the peers given by --peer.
        directory: parent of the virtual environments.
        build: function that builds the environment of a peer, as ``build_environment``.
        quiet: function that waits up to some seconds until the machine is quiet, and raises if it
            stays busy.
        device_kind: kind of the device of jaxdqn.
        rounds: number of measurements of each peer at the matched workload.
        seeds: number of seeds of each peer at its best settings.
        divisor: divisor of the matched workload.
        threads: threads of XLA and PyTorch in the peers on CPU; None for one per core.
        report: receives lines of progress.

    Returns:
        ``matched`` and ``at_best``, a record for each peer with its result or ``missing``; the
        installed ``environments``; and the use of the ``machine``.

    Raises:
        ValueError: if other programs use the machine.
    """
    quiet(0.0)  # before anything is installed
    arguments = _arguments(given)
    built: dict[str, Built] = {}
    for name, argument in arguments.items():
        if argument is None:
            built[name] = Built(None, missing=f"give --peer {name}=FILE ({FROM_FILES[name]})")
        else:
            report(f"environment of {name}")
            built[name] = build(name, directory)
    pythons = {name: each.python for name, each in built.items() if each.python is not None}
    seen = quiet(_PATIENCE)
    matched = [
        {"peer": name, "missing": each.missing}
        for name, each in built.items()
        if each.python is None
    ]
    ready = {name: arguments[name] or "" for name in pythons}
    matched += _matched(ready, pythons, rounds, divisor, threads, report)
    best = [(name, _file_at_best(name, ready[name])) for name in AT_BEST if name in ready]
    return {
        "machine": seen.describe(),
        "environments": {name: list(each.versions) for name, each in built.items()},
        "matched": matched,
        "at_best": compare_at_best(best, seeds, pythons, threads, report, device_kind=device_kind),
    }


def missing_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each peer that was not measured, with its reason."""
    found = [(each["peer"], "matched", each) for each in report["matched"]]
    found += [(each["name"], "at its best", each) for each in report["at_best"]]
    return [
        f"{name}, {how}: not measured: {each['missing']}"
        for name, how, each in found
        if "missing" in each
    ]


def _arguments(given: Sequence[tuple[str, str]]) -> dict[str, str | None]:
    """Return the argument of each peer; None for a file that was not given."""
    arguments: dict[str, str | None] = dict.fromkeys(FROM_FILES)
    for name in FROM_INDEX:
        arguments[name] = CADENCE if name.endswith("-host") else ""
    return arguments | dict(given)


def _file_at_best(name: str, argument: str) -> str:
    return (
        str(Path(argument).with_name(_AT_BEST_FILES[name])) if name in _AT_BEST_FILES else argument
    )


def _matched(
    arguments: Mapping[str, str],
    pythons: Mapping[str, str],
    rounds: int,
    divisor: int,
    threads: int | None,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the peers in turn, each alternately with jaxdqn on the same workload."""
    results = []
    for work in dict.fromkeys(work_of(name, argument) for name, argument in arguments.items()):
        # One workload at a time, so that no other process of jaxdqn holds memory meanwhile.
        with ExitStack() as stack:
            jaxdqn = start_jaxdqn(work, divisor)
            stack.callback(jaxdqn.close)
            ready = jaxdqn.receive()
            for name, argument in arguments.items():
                if work_of(name, argument) != work:
                    continue
                report(f"matched work: {name}")
                if "missing" in ready:
                    results.append({"peer": name, "missing": f"jaxdqn: {ready['missing']}"})
                    continue
                results.append(
                    measure_peer(
                        name, argument, jaxdqn, device_kind=ready["device_kind"],
                        python=pythons[name], rounds=rounds, divisor=divisor, threads=threads,
                    )
                )  # fmt: skip
    return results
