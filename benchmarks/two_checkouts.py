"""Compare the throughput of two checkouts: ``python -m benchmarks.two_checkouts A B``.

Each checkout runs in its own process, which imports the checkout's ``jaxdqn`` and compiles chunks
of learning iterations at the matched workload. The processes are measured in alternation. The
ratio is that of B to A, so above 1 means that B is faster. The checkouts need no such command,
and may be older than this one; both use the packages of this interpreter. Settings that the
workload does not name have the defaults of the checkout.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdqn.cli.flags import parse, run_command
from jaxdqn.errors import RunFailed

Work = Literal["cartpole", "cartpole-large", "breakout", "breakout-large"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    checkouts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A and B, directories of checkouts; A is the reference."""
    work: tuple[Work, ...] = ("cartpole", "breakout")
    """Workloads, of 10 environments and a gradient step of batch 128 in each iteration, or of 256
    environments, 8 vector steps and 8 gradient steps (-large)."""
    rounds: int = 21
    """Measurements of each checkout."""
    seconds: float = 1.0
    """Approximate minimum duration of a measurement."""
    iterations: int = 200
    """Iterations in one call of the compiled program."""
    cpu_threads: int = 1
    """Threads of XLA on CPU; 1 as in ``jaxdqn run`` for networks of this size."""
    json: str | None = None
    """File for the measurements."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.two_checkouts", description=__doc__)
    _check(flags)
    from benchmarks.report import (
        check_writable,
        commit_of,
        describe,
        format_table,
        stamp,
        write_json,
    )
    from benchmarks.timing import RATIOS

    check_writable(flags.json)
    report: dict[str, Any] = {
        "stamp": stamp(),
        "checkouts": {
            name: commit_of(Path(path)) for name, path in zip("AB", flags.checkouts, strict=True)
        },
        "iterations": flags.iterations,
    }
    print(describe(report["stamp"]))
    for name, commit in report["checkouts"].items():
        print(f"{name}: commit {commit}")
    report["work"] = {work: compare(flags, fields_of(work)) for work in flags.work}
    print(f"iterations/s; B over A; {RATIOS}")
    header = ["work", "A", "B", "B over A", "B over A, processor time"]
    print(format_table(header, [_row(work, found) for work, found in report["work"].items()]))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def _check(flags: Flags) -> None:
    """Raise if a flag is invalid."""
    if len(flags.checkouts) != 2:
        raise ValueError(f"checkouts={flags.checkouts}: must be two directories, A and B")
    for checkout in flags.checkouts:
        if not (Path(checkout) / "jaxdqn" / "__init__.py").is_file():
            raise ValueError(f"checkouts={checkout!r}: must be a checkout, with jaxdqn/__init__.py")
    for name in ("rounds", "iterations", "cpu_threads"):
        if getattr(flags, name) < 1:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least 1")
    if flags.seconds < 0:
        raise ValueError(f"seconds={flags.seconds}: must be at least 0")


def fields_of(work: str) -> dict[str, Any]:
    """Return the fields of a workload that differ from the defaults of this checkout.

    Fields that an older checkout lacks are not among them, unless the workload needs them.
    """
    from benchmarks.configs import BREAKOUT, CARTPOLE, matched
    from jaxdqn.config.config import Config, to_dict

    large = {"num_envs": 256, "rollout_length": 8, "gradient_steps": 8}
    env = CARTPOLE if work.startswith("cartpole") else BREAKOUT
    given = to_dict(matched(env, **(large if work.endswith("-large") else {})))
    default = to_dict(Config())
    needed = ("env", "num_envs", "rollout_length", "gradient_steps", "batch_size")
    return {
        name: value for name, value in given.items() if name in needed or value != default[name]
    }


def compare(flags: Flags, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Measure both checkouts in alternation.

    Returns:
        iterations per second and per processor second of both, and the ratios of B to A.

    Raises:
        RunFailed: if a checkout cannot run the workload, with its reason.
    """
    from benchmarks.processes import Process
    from benchmarks.timing import alternating, median_interval, spread

    driver = Path(__file__).with_name("checkout_driver.py")
    more = [json.dumps(fields), str(flags.iterations), str(flags.seconds)]
    # -P keeps the driver's directory, with this checkout's modules, out of sys.path.
    processes = {
        name: Process([sys.executable, "-P", str(driver), path, *more], flags.cpu_threads)
        for name, path in zip("AB", flags.checkouts, strict=True)
    }
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
    try:
        compiled = {name: _answer(name, each.receive()) for name, each in processes.items()}
        for name in alternating(processes, flags.rounds):
            answers[name].append(_answer(name, processes[name].measure()))
    finally:
        for process in processes.values():
            process.close()
    found: dict[str, Any] = {"fields": dict(fields)}
    found["compile_seconds"] = {name: each["compile_seconds"] for name, each in compiled.items()}
    for clock in ("seconds", "cpu_seconds"):
        rates = {
            name: [each["iterations"] / each[clock] for each in answers[name]] for name in answers
        }
        ratios = [b / a for a, b in zip(rates["A"], rates["B"], strict=True)]
        spreads = {name: spread(values) for name, values in rates.items()}
        found[f"iterations_per_{clock}"] = {**spreads, "ratio": median_interval(ratios)}
    return found


def _answer(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "missing" in answer:
        raise RunFailed(f"checkout {name} cannot run the workload: {answer['missing']}")
    return answer


def _row(work: str, found: Mapping[str, Any]) -> list[Any]:
    wall, cpu = found["iterations_per_seconds"], found["iterations_per_cpu_seconds"]
    return [work, wall["A"], wall["B"], wall["ratio"], cpu["ratio"]]


if __name__ == "__main__":
    raise SystemExit(main())
