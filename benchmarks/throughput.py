"""Measure throughput and the time of each part: ``python -m benchmarks.throughput``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.configs import BREAKOUT, CARTPOLE, sized
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import (
    MEDIANS,
    RATIOS,
    Effort,
    Interval,
    alternate,
    compile_cold,
    microseconds,
    ratio,
    spread,
    verdict,
)
from jaxdqn.cli.flags import parse, run_command

PARTS = ("keys", "environment", "act", "add", "sample", "learn")
RING_BAR = 1.3
ACTING_BAR = 1.5

Section = Literal["settings", "ring", "acting"]


class Setting(NamedTuple):
    """Sizes of a run."""

    env: str
    num_envs: int
    rollout_length: int
    gradient_steps: int
    batch_size: int


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
QUICK = Effort(rounds=3, seconds=0.05, iterations=50, quick=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    quick: bool = False
    """Fewer settings, measured briefly: a first look, not a measurement."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/throughput.json."""
    sections: tuple[Section, ...] = ("settings", "ring", "acting")
    """settings: throughput and the time of each part; ring: a large ring relative to a small ring;
    acting: acting, environment and ring relative to environment and forward pass."""


def measure_setting(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Measure throughput, compilation and each part of an iteration for one setting."""
    from benchmarks import workloads

    config = sized(**setting._asdict())
    learning = workloads.prepare_learning(config, effort.iterations)
    parts = workloads.prepare_parts(config, effort.iterations)
    cases = {"iteration": learning.case}
    cases |= {name: part.case for name, (part, _) in parts.items()}
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    _, metrics = learning.case.run()
    iteration = spread(times["iteration"])
    part_times = {
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
        "us_of_parts_alone": part_times,
        "us_of_parts_summed": sum(part.median for part in part_times.values()),
    }


def measure_ring(env: str, effort: Effort, *, small: int, large: int) -> dict[str, Any]:
    """Measure an iteration (E=10, B=128) with full rings of ``large`` and of ``small`` rows."""
    from benchmarks import workloads

    cases = {}
    for rows in (small, large):
        config = sized(env, num_envs=10, replay_capacity=rows, warmup_rows=rows)
        cases[str(rows)] = workloads.prepare_learning(config, effort.iterations).case
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return {
        "env": env,
        "rows": [small, large],
        "us_per_iteration": {rows: microseconds(seconds) for rows, seconds in times.items()},
        "ratio": ratio(times[str(large)], times[str(small)]),
        "bar": RING_BAR,
    }


def measure_acting(env: str, effort: Effort, *, num_envs: int) -> dict[str, Any]:
    """Measure acting with environment and ring, and the environment and forward pass alone."""
    from benchmarks import workloads

    config = sized(env, num_envs=num_envs)
    cases = {
        "whole": workloads.prepare_acting(config, effort.iterations).case,
        "bare": workloads.prepare_bare_acting(config, effort.iterations).case,
    }
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return {
        "env": env,
        "num_envs": num_envs,
        "us_per_vector_step": {name: microseconds(seconds) for name, seconds in times.items()},
        "rows_per_second": num_envs / spread(times["whole"]).median,
        "ratio": ratio(times["whole"], times["bare"]),
        "bar": ACTING_BAR,
    }


def settings_table(measured: Sequence[dict[str, Any]]) -> str:
    """Format the settings: throughput, then the microseconds of each part."""
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
    """Format the iteration times by the size of the ring."""
    rows = [
        [
            each["env"],
            *(f"{count:,}: {each['us_per_iteration'][str(count)]}" for count in each["rows"]),
            each["ratio"],
            verdict(each["ratio"], each["bar"], higher_is_better=False),
        ]
        for each in measured
    ]
    return format_table(["environment", "rows: us", "rows: us", "ratio", "bar"], rows)


def acting_table(measured: Sequence[dict[str, Any]]) -> str:
    """Format the times of acting with and without exploration, counters and ring."""
    rows = [
        [
            each["env"],
            each["num_envs"],
            each["rows_per_second"],
            each["us_per_vector_step"]["whole"],
            each["us_per_vector_step"]["bare"],
            each["ratio"],
            verdict(each["ratio"], each["bar"], higher_is_better=False),
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
    print(describe(report["stamp"]), f"{MEDIANS}; {RATIOS}", sep="\n")
    for section, (measure, title, table) in SECTIONS.items():
        if section in flags.sections:
            report[section] = [_progress(measured) for measured in measure(effort)]
            print(f"\n{title}", table(report[section]), sep="\n")
            _save(flags.json, report)
    if flags.json is not None:
        print(f"\nmeasurements in {flags.json}")


def _settings(effort: Effort) -> Iterator[dict[str, Any]]:
    for setting in QUICK_SETTINGS if effort.quick else SETTINGS:
        yield measure_setting(setting, effort)


def _rings(effort: Effort) -> Iterator[dict[str, Any]]:
    large = 100_000 if effort.quick else 1_000_000
    for env in (CARTPOLE, BREAKOUT):
        yield measure_ring(env, effort, small=10_000, large=large)


def _acting(effort: Effort) -> Iterator[dict[str, Any]]:
    for env in (CARTPOLE, BREAKOUT):
        yield measure_acting(env, effort, num_envs=1024)


class _SectionParts(NamedTuple):
    """Measurement, title and table of a section."""

    measure: Callable[[Effort], Iterator[dict[str, Any]]]
    title: str
    table: Callable[[Sequence[dict[str, Any]]], str]


SECTIONS: dict[Section, _SectionParts] = {
    "settings": _SectionParts(
        _settings, "an iteration, and each of its parts in a separate scan, in us", settings_table
    ),
    "ring": _SectionParts(
        _rings, "a learning iteration by the size of a full ring, E=10, K=1, M=1, B=128", ring_table
    ),
    "acting": _SectionParts(
        _acting,
        "acting, environment and ring, relative to environment and forward pass",
        acting_table,
    ),
}


def _save(path: str | None, report: dict[str, Any]) -> None:
    """Write the measurements so far, so that an interrupted benchmark keeps them."""
    if path is not None:
        write_json(path, report)


def _progress(measured: dict[str, Any]) -> dict[str, Any]:
    """Print on a terminal that a measurement is done, and return it."""
    if sys.stderr.isatty():
        sizes = [str(measured[name]) for name in Setting._fields if name in measured]
        print("measured", *sizes, file=sys.stderr)
    return measured


if __name__ == "__main__":
    sys.exit(main())
