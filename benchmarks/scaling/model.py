"""Predict how training scales over devices: ``python -m benchmarks.scaling.model``.

From the measured time of a gradient step on one device, the size of the gradient and the link
between devices, the model predicts the time of a step on D devices, and the smallest D at which
each form of communication is faster than a float32 all-reduce. ``docs/scaling.md`` derives the
model.
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
    """Latency of a message in seconds, launch overhead included."""


class Work(NamedTuple):
    """Gradient step on one device."""

    seconds: float
    """Seconds of computation."""
    parameters: int
    """Number of float32 values in the gradient."""
    coding: float = 0.0
    """Seconds to encode and decode a compressed gradient."""


def ring_seconds(size: float, devices: int, link: Link) -> float:
    """Return the seconds that a ring all-reduce of ``size`` bytes takes (Patarasuk and Yuan 2009).

    Each of the D devices sends 2 (D-1) messages in sequence, each of ``size`` / D bytes.
    """
    if devices == 1:
        return 0.0
    messages = 2 * (devices - 1)
    return messages * (link.latency + size / devices / link.bytes_per_second)


def step_seconds(work: Work, link: Link, devices: int, *, form: str, every: int = 8) -> float:
    """Return the mean seconds of a gradient step on D devices.

    The model has no overlap: communication starts when the complete gradient has been computed.

    Args:
        work: gradient step on one device.
        link: link between devices.
        devices: D.
        form: ``float32`` for an all-reduce of the gradient, ``bfloat16`` or ``int8`` for an
            all-reduce of the compressed gradient, ``average`` for an all-reduce of the parameters.
        every: period of parameter averaging in gradient steps, for ``average`` only.

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
    """Return the smallest D at which a form is at least ``gain`` times as fast as float32.

    Args:
        work: gradient step on one device.
        link: link between devices.
        form: form of communication, as in ``step_seconds``.
        every: period of parameter averaging in gradient steps, for ``average`` only.
        gain: required speed-up.

    Returns:
        D, a power of two from 2 to 4096, or None if there is no such D.
    """
    for power in range(1, 13):
        float32 = step_seconds(work, link, 2**power, form="float32")
        if float32 >= gain * step_seconds(work, link, 2**power, form=form, every=every):
            return 2**power
    return None


def longest_step_worth_saving(
    link: Link, parameters: int, devices: int, gain: float = 1.05
) -> float:
    """Return the seconds of computation above which an all-reduce costs less than ``gain``.

    Without the all-reduce, a longer step would be less than ``gain`` times as fast.
    """
    return ring_seconds(4.0 * parameters, devices, link) / (gain - 1)


def fit_link(points: Sequence[tuple[float, int, float]]) -> Link:
    """Fit the latency and bandwidth of a link to measured all-reduces by least squares.

    Args:
        points: (bytes, devices, seconds) of each all-reduce, with at least two values of
            bytes / devices.

    Raises:
        ValueError: if the points do not determine latency and bandwidth.
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
        raise ValueError(f"points={list(points)}: must have at least two values of bytes / devices")
    latency = (at * bb - bt * ab) / determinant
    per_byte = (bt * aa - at * ab) / determinant
    if per_byte <= 0:
        raise ValueError(f"points={list(points)}: seconds must increase with bytes")
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
    """Bandwidth of the link between neighbouring devices."""
    latency_us: float = 5.0
    """Latency of a message in microseconds."""
    every: int = 8
    """Period of parameter averaging in gradient steps."""
    devices: tuple[int, ...] = (8, 64, 512)
    """Device counts to predict."""
    check: str | None = None
    """Results of ``python -m benchmarks.scaling --json``. The link is fitted to the all-reduces in
    the file, and predicted step times are compared with the measured ones."""
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
        where = "on no number of devices up to 4096" if count is None else f"from {count} devices"
        print(f"{form}: at least 5 % faster than float32 {where}")
    largest = max(flags.devices)
    if largest > 1:
        seconds = longest_step_worth_saving(link, flags.parameters, largest)
        print(
            f"on {largest} devices: communication costs less than 5 % of a step that computes for "
            f"more than {1e3 * seconds:.3g} ms"
        )
    report: dict[str, Any] = {"work": work, "link": link, "efficiency": rows}
    if flags.check is not None:
        report["check"] = _check(Path(flags.check))
    if flags.json is not None:
        write_json(flags.json, report)


def _check_flags(flags: Flags) -> None:
    """Raise a ValueError if a flag is out of range."""
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
    """Print measured and predicted step times, and return them.

    The link is fitted to the measured all-reduces.
    """
    try:
        measured = json.loads(path.read_text())
        points = [
            (row["bytes"], row["D"], 1e-6 * row["us/all-reduce"]["median"])
            for row in measured["link"]
        ]
        steps = [row for row in measured["strong"] + measured["weak"] if row["D"] > 1]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"check={str(path)!r}: must be written by python -m benchmarks.scaling --json with the "
            f"sections link, strong and weak: {error!r}"
        ) from None
    link, checked = fit_link(points), []
    for row in steps:
        work = Work(1e-6 * row["silent, us"]["median"], row["parameters"])
        predicted = 1e6 * step_seconds(work, link, row["D"], form="float32")
        actual = row["us/gradient step"]["median"]
        deviation = f"{predicted / actual - 1:+.0%}"
        checked.append([row["setting"], row["D"], actual, predicted, deviation])
    headers = ["setting", "D", "measured, us", "predicted, us", "error"]
    print(
        f"\nstep time with an all-reduce: strong scaling, then weak scaling. Link fitted to the "
        f"measured all-reduces: {link.bytes_per_second / 1e9:.3g} GB/s, {1e6 * link.latency:.3g} "
        "us per message"
    )
    print(format_table(headers, checked))
    return [dict(zip(headers, row, strict=True)) for row in checked]


if __name__ == "__main__":
    sys.exit(main())
