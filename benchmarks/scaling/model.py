"""Predict how training scales over devices: ``python -m benchmarks.scaling.model``.

From the measured time of a gradient step on one device, the size of the gradient and the link
between devices, the model predicts the time of a step on D devices, and the number of devices from
which each form of communication is faster. ``docs/scaling.md`` derives it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import check_writable, format_table, write_json
from jaxdqn.cli.flags import parse, run_command

FORMS = ("float32", "bfloat16", "int8", "average")


class Link(NamedTuple):
    """Link between two neighbouring devices."""

    bytes_per_second: float
    latency: float
    """Seconds per empty message, including its launch."""


class Work(NamedTuple):
    """Gradient step on one device."""

    seconds: float
    """Seconds of computation."""
    parameters: int
    """Number of float32 values in the gradient."""
    coding: float = 0.0
    """Seconds to encode and decode a compressed gradient."""


def ring_seconds(size: float, devices: int, link: Link) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes by a ring (Patarasuk and Yuan 2009).

    The ring sends 2 (D-1) messages one after another, each with 1/D of the bytes.
    """
    if devices == 1:
        return 0.0
    messages = 2 * (devices - 1)
    return messages * (link.latency + size / devices / link.bytes_per_second)


def step_seconds(work: Work, link: Link, devices: int, *, form: str, every: int = 8) -> float:
    """Return the mean seconds of a gradient step on D devices.

    Communication does not overlap with computation, because a gradient of this size is sent only
    when it is complete.

    Args:
        work: gradient step on one device.
        link: link between devices.
        devices: D.
        form: ``float32`` for an all-reduce of the gradient, ``bfloat16`` or ``int8`` for an
            all-reduce of the compressed gradient, ``average`` for an all-reduce of the parameters.
        every: gradient steps between two averagings.

    Raises:
        ValueError: if the form is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
    size = 4.0 * work.parameters
    if form == "float32":
        return work.seconds + ring_seconds(size, devices, link)
    if form == "average":
        return work.seconds + ring_seconds(size, devices, link) / every
    share = {"bfloat16": 1 / 2, "int8": (1 + 4 / 256) / 4}[form]
    coding = 0.0 if devices == 1 else work.coding
    return work.seconds + coding + ring_seconds(share * size, devices, link)


def efficiency(work: Work, link: Link, devices: int, *, form: str, every: int = 8) -> float:
    """Return the efficiency of weak scaling: the step time of one device over that of D devices."""
    return work.seconds / step_seconds(work, link, devices, form=form, every=every)


def pays_from(
    work: Work, link: Link, form: str, *, every: int = 8, gain: float = 1.05
) -> int | None:
    """Return the smallest D, a power of two up to 4096, at which a form is faster than float32.

    Args:
        work: gradient step on one device.
        link: link between devices.
        form: form of communication, as in ``step_seconds``.
        every: gradient steps between two averagings.
        gain: required speed-up.

    Returns:
        D, or None if no such D exists.
    """
    for power in range(1, 13):
        float32 = step_seconds(work, link, 2**power, form="float32")
        if float32 >= gain * step_seconds(work, link, 2**power, form=form, every=every):
            return 2**power
    return None


def longest_step_worth_saving(
    link: Link, parameters: int, devices: int, gain: float = 1.05
) -> float:
    """Return the step time above which removing the all-reduce would gain less than ``gain``."""
    return ring_seconds(4.0 * parameters, devices, link) / (gain - 1)


def fit_link(points: Sequence[tuple[float, int, float]]) -> Link:
    """Fit latency and speed of a link to measured all-reduces by least squares.

    Args:
        points: (bytes, devices, seconds) of each all-reduce, of at least two sizes.

    Raises:
        ValueError: if the points do not determine latency and speed.
    """
    # Model: seconds = a * latency + b * seconds_per_byte; solve the normal equations.
    rows = [(2 * (d - 1), 2 * (d - 1) / d * size, t) for size, d, t in points]
    aa = sum(a * a for a, _, _ in rows)
    ab = sum(a * b for a, b, _ in rows)
    bb = sum(b * b for _, b, _ in rows)
    at = sum(a * t for a, _, t in rows)
    bt = sum(b * t for _, b, t in rows)
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:
        raise ValueError(f"points={list(points)}: must have at least two sizes")
    latency = (at * bb - bt * ab) / determinant
    per_byte = (bt * aa - at * ab) / determinant
    if per_byte <= 0:
        raise ValueError(f"points={list(points)}: must take longer for more bytes")
    return Link(1 / per_byte, max(0.0, latency))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    step_us: float = 280.0
    """Microseconds of computation per gradient step on one device."""
    parameters: int = 10_934
    """Number of values in the gradient."""
    coding_us: float = 20.0
    """Microseconds to encode and decode a compressed gradient."""
    gigabytes_per_second: float = 100.0
    """Speed of the link between neighbouring devices."""
    latency_us: float = 5.0
    """Microseconds per empty message."""
    every: int = 8
    """Gradient steps between two averagings."""
    devices: tuple[int, ...] = (8, 64, 512)
    """Numbers of devices to predict."""
    check: str | None = None
    """File written by ``python -m benchmarks.scaling --json``: fit the link to its all-reduces and
    compare its measured steps with the predictions."""
    json: str | None = None
    """File for the predictions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.scaling.model", description=__doc__)
    check_writable(flags.json)
    _check_flags(flags)
    work = Work(1e-6 * flags.step_us, flags.parameters, 1e-6 * flags.coding_us)
    link = Link(1e9 * flags.gigabytes_per_second, 1e-6 * flags.latency_us)
    rows = _efficiency_rows(work, link, flags)
    print("efficiency of weak scaling: step time of one device / step time of D devices")
    print(format_table(["D", *FORMS[:-1], f"average every {flags.every}"], rows))
    print()
    for form in FORMS[1:]:
        count = pays_from(work, link, form, every=flags.every)
        where = "at no number up to 4096" if count is None else f"from {count} devices"
        print(f"{form}: at least 5 % faster than float32 {where}")
    largest = max(flags.devices)
    if largest > 1:
        seconds = longest_step_worth_saving(link, flags.parameters, largest)
        print(
            f"on {largest} devices: above {1e3 * seconds:.3g} ms per step, communication costs "
            "less than 5 %"
        )
    report: dict[str, Any] = {"work": work, "link": link, "efficiency": rows}
    if flags.check is not None:
        report["check"] = _check(Path(flags.check))
    if flags.json is not None:
        write_json(flags.json, report)


def _check_flags(flags: Flags) -> None:
    """Raise if a flag is out of range."""
    for name in ("step_us", "parameters", "gigabytes_per_second", "every"):
        if getattr(flags, name) <= 0:
            raise ValueError(f"{name}={getattr(flags, name)}: must be above 0")
    for name in ("coding_us", "latency_us"):
        if getattr(flags, name) < 0:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least 0")
    if any(count < 1 for count in flags.devices):
        raise ValueError(f"devices={flags.devices}: must each be at least 1")


def _efficiency_rows(work: Work, link: Link, flags: Flags) -> list[list[Any]]:
    """Return the efficiency of each form of communication, one row per number of devices."""
    rows: list[list[Any]] = []
    for count in flags.devices:
        shares = [efficiency(work, link, count, form=form, every=flags.every) for form in FORMS]
        rows.append([count, *(f"{share:.1%}" for share in shares)])
    return rows


def _check(path: Path) -> list[dict[str, Any]]:
    """Print measured steps and predictions with a link fitted to the measured all-reduces."""
    try:
        measured = json.loads(path.read_text())
        points = [
            (row["bytes"], row["D"], 1e-6 * row["us/all-reduce"]["median"])
            for row in measured["link"]
        ]
        steps = [row for row in measured["strong"] + measured["weak"] if row["D"] > 1]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"check={str(path)!r}: must be a file of benchmarks.scaling with the sections link, "
            f"strong and weak: {error!r}"
        ) from None
    link, checked = fit_link(points), []
    for row in steps:
        work = Work(1e-6 * row["silent, us"]["median"], row["parameters"])
        predicted = 1e6 * step_seconds(work, link, row["D"], form="float32")
        actual = row["us/gradient step"]["median"]
        deviation = f"{predicted / actual - 1:+.0%}"
        checked.append([row["setting"], row["D"], actual, predicted, deviation])
    headers = ["setting", "D", "measured, us", "predicted, us", "off"]
    print(
        f"\nsteps with an all-reduce: strong scaling, then weak scaling. The link is fitted to "
        f"the all-reduces: {link.bytes_per_second / 1e9:.3g} GB/s, {1e6 * link.latency:.3g} us per "
        "message"
    )
    print(format_table(headers, checked))
    return [dict(zip(headers, row, strict=True)) for row in checked]


if __name__ == "__main__":
    sys.exit(main())
