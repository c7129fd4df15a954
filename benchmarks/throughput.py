"""Measure throughput, and where the time goes: ``python -m benchmarks.throughput``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import OF_MEDIAN, Interval, alternate, compile_cold, ratio, spread
from jaxdqn.cli.flags import parse, run_command

PARTS = ("keys", "environment", "act", "add", "sample", "learn")
RING_BAR = 1.3
ACTING_BAR = 1.5

Section = Literal["settings", "ring", "acting"]


class Setting(NamedTuple):
    """The sizes of a run."""

    env: str
    num_envs: int
    rollout_length: int
    gradient_steps: int
    batch_size: int


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Of one measurement."""
    iterations: int
    """In one call of a compiled scan."""


CARTPOLE, BREAKOUT = "CartPole-v1", "Breakout-MinAtar"
SETTINGS = (
    Setting(CARTPOLE, 10, 1, 1, 128),
    Setting(CARTPOLE, 32, 1, 1, 128),
    Setting(CARTPOLE, 64, 4, 4, 256),
    Setting(CARTPOLE, 256, 1, 1, 512),
    Setting(CARTPOLE, 1024, 8, 8, 1024),
    Setting(BREAKOUT, 10, 1, 1, 128),
    Setting(BREAKOUT, 32, 4, 2, 32),
    Setting(BREAKOUT, 128, 1, 1, 128),
    Setting(BREAKOUT, 1024, 4, 4, 256),
)
QUICK_SETTINGS = (SETTINGS[0], SETTINGS[5])
FULL = Effort(rounds=7, seconds=0.5, iterations=200)
QUICK = Effort(rounds=3, seconds=0.05, iterations=50)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    quick: bool = False
    """A few settings, briefly: figures to look at, not to keep."""
    json: str | None = None
    """File to write the measurements to, such as benchmarks/results/throughput.json."""
    sections: tuple[Section, ...] = ("settings", "ring", "acting")
    """settings: speed and where the time goes; ring: a large ring over a small one;
    acting: acting, environment and ring over environment and forward pass alone."""


def measure_setting(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Measure one setting: throughput, compilation, and each part of an iteration alone."""
    from benchmarks import workloads

    config = workloads.sized(**setting._asdict())
    learning = workloads.prepare_learning(config, effort.iterations)
    parts = workloads.prepare_parts(config, effort.iterations)
    cases = {"iteration": learning.case}
    cases |= {name: part.case for name, (part, _) in parts.items()}
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    _, metrics = learning.case.run()
    iteration = spread(times["iteration"])
    each = {
        name: spread([1e6 * count * time for time in times[name]])
        for name, (_, count) in parts.items()
    }
    env_steps = int(metrics.env_steps) / effort.iterations
    return {
        **setting._asdict(),
        "env_steps_per_second": env_steps / iteration.median,
        "gradient_steps_per_second": config.gradient_steps_per_iteration / iteration.median,
        "compile_seconds": learning.compile_seconds,
        "us_per_iteration": Interval(*(1e6 * value for value in iteration)),
        "us_of_parts_alone": each,
        "us_of_parts_summed": sum(part.median for part in each.values()),
    }


def measure_ring(env: str, effort: Effort, *, small: int, large: int) -> dict[str, Any]:
    """Measure an iteration (E=10, B=128) with a full ring of ``large`` rows over ``small``."""
    from benchmarks import workloads

    cases = {}
    for rows in (small, large):
        config = workloads.sized(env, num_envs=10, replay_capacity=rows, warmup_rows=rows)
        cases[str(rows)] = workloads.prepare_learning(config, effort.iterations).case
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return {
        "env": env,
        "rows": [small, large],
        "us_per_iteration": {
            rows: Interval(*(1e6 * value for value in spread(took))) for rows, took in times.items()
        },
        "ratio": ratio(times[str(large)], times[str(small)]),
        "bar": RING_BAR,
    }


def measure_acting(env: str, effort: Effort, *, num_envs: int) -> dict[str, Any]:
    """Measure acting, environment and ring over environment and forward pass alone."""
    from benchmarks import workloads

    config = workloads.sized(env, num_envs=num_envs)
    cases = {
        "whole": workloads.prepare_acting(config, effort.iterations).case,
        "bare": workloads.prepare_bare_acting(config, effort.iterations).case,
    }
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return {
        "env": env,
        "num_envs": num_envs,
        "us_per_vector_step": {
            name: Interval(*(1e6 * value for value in spread(took))) for name, took in times.items()
        },
        "rows_per_second": num_envs / spread(times["whole"]).median,
        "ratio": ratio(times["whole"], times["bare"]),
        "bar": ACTING_BAR,
    }


def settings_table(measured: Sequence[dict[str, Any]]) -> str:
    """Return the table of settings: throughput, then microseconds of each part alone."""
    headers = ["environment", "E", "K", "M", "B", "env steps/s", "gradient steps/s", "compile s"]
    headers += ["us/iteration", *PARTS, "parts"]
    rows = [
        [
            *(each[name] for name in Setting._fields),
            each["env_steps_per_second"],
            each["gradient_steps_per_second"],
            each["compile_seconds"],
            each["us_per_iteration"],
            *(each["us_of_parts_alone"][part].median for part in PARTS),
            each["us_of_parts_summed"],
        ]
        for each in measured
    ]
    return format_table(headers, rows)


def ring_table(measured: Sequence[dict[str, Any]]) -> str:
    """Return the table of iteration times by the rows of the ring."""
    rows = [
        [
            each["env"],
            *(f"{count:,}: {each['us_per_iteration'][str(count)]}" for count in each["rows"]),
            each["ratio"],
            _verdict(each["ratio"], each["bar"]),
        ]
        for each in measured
    ]
    return format_table(["environment", "rows: us", "rows: us", "ratio", "bar"], rows)


def acting_table(measured: Sequence[dict[str, Any]]) -> str:
    """Return the table of acting with and without what makes it a run."""
    rows = [
        [
            each["env"],
            each["num_envs"],
            each["rows_per_second"],
            each["us_per_vector_step"]["whole"],
            each["us_per_vector_step"]["bare"],
            each["ratio"],
            _verdict(each["ratio"], each["bar"]),
        ]
        for each in measured
    ]
    headers = ["environment", "E", "rows/s", "act + env + ring, us", "env + forward, us"]
    return format_table([*headers, "ratio", "bar"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.throughput", description=__doc__)
    check_writable(flags.json)
    compile_cold()
    effort = QUICK if flags.quick else FULL
    report: dict[str, Any] = {"stamp": stamp(), "effort": effort}
    print(
        describe(report["stamp"]),
        f"medians (least-greatest); of ratios the median and {OF_MEDIAN}",
        sep="\n",
    )
    if "settings" in flags.sections:
        report["settings"] = [
            _said(measure_setting(setting, effort))
            for setting in (QUICK_SETTINGS if flags.quick else SETTINGS)
        ]
        print("\nan iteration, and its parts each alone in a scan, in us")
        print(settings_table(report["settings"]))
        _keep(flags.json, report)
    if "ring" in flags.sections:
        large = 100_000 if flags.quick else 1_000_000
        report["ring"] = [
            _said(measure_ring(env, effort, small=10_000, large=large))
            for env in (CARTPOLE, BREAKOUT)
        ]
        print("\na learning iteration by the rows of a full ring, E=10, K=1, M=1, B=128")
        print(ring_table(report["ring"]))
        _keep(flags.json, report)
    if "acting" in flags.sections:
        report["acting"] = [
            _said(measure_acting(env, effort, num_envs=1024)) for env in (CARTPOLE, BREAKOUT)
        ]
        print("\nacting, environment and ring over environment and forward pass alone")
        print(acting_table(report["acting"]))
        _keep(flags.json, report)
    if flags.json is not None:
        print(f"\nmeasurements in {flags.json}")


def _keep(path: str | None, report: dict[str, Any]) -> None:
    """Write what is measured so far: a long run that is ended keeps it."""
    if path is not None:
        write_json(path, report)


def _said(measured: dict[str, Any]) -> dict[str, Any]:
    """Show that a measurement is done, where someone is watching."""
    if sys.stderr.isatty():
        sizes = [str(measured[name]) for name in Setting._fields if name in measured]
        print("measured", *sizes, file=sys.stderr)
    return measured


def _verdict(measured: Interval, bar: float) -> str:
    """Say whether the whole interval is within the bar, beyond it, or neither."""
    if measured.high <= bar:
        return f"<= {bar}: reached"
    return f"<= {bar}: missed" if measured.low > bar else f"<= {bar}: undecided"


if __name__ == "__main__":
    sys.exit(main())
