"""Predict how training scales over devices: ``python -m benchmarks.scaling.model``.

From what one device was measured to take for a gradient step, the gradient's size,
and the link between devices, the model gives the time of a step on D of them, and
says from where on each saving in communication pays. ``docs/scaling.md`` derives it.
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
    """What lies between two neighbouring devices."""

    bytes_per_second: float
    latency: float
    """Seconds for a message of no length, its launch included."""


class Work(NamedTuple):
    """A gradient step on one device."""

    seconds: float
    """Its computation."""
    parameters: int
    """Float32 numbers in the gradient."""
    coding: float = 0.0
    """Seconds to encode and decode a compressed gradient."""


def ring_seconds(size: float, devices: int, link: Link) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes by a ring (Patarasuk and Yuan 2009).

    It takes 2 (D-1) messages one after the other, each of 1/D of the bytes.
    """
    if devices == 1:
        return 0.0
    messages = 2 * (devices - 1)
    return messages * (link.latency + size / devices / link.bytes_per_second)


def step_seconds(work: Work, link: Link, devices: int, *, form: str, every: int = 8) -> float:
    """Return the seconds of a gradient step on D devices, on average.

    Communication is not hidden behind computation: a gradient of this size is
    complete before any of it is sent.

    Args:
      form: ``float32`` all-reduce, the same compressed as ``bfloat16`` or ``int8``, or
        ``average``: parameters, every ``every`` steps.

    Raises:
      ValueError: if there is no such form.
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
    """Return one device's time over that of D with as much work each (weak scaling)."""
    return work.seconds / step_seconds(work, link, devices, form=form, every=every)


def pays_from(
    work: Work, link: Link, form: str, *, every: int = 8, gain: float = 1.05
) -> int | None:
    """Return the least D, a power of two up to 4096, at which a form gains over float32.

    Args:
      gain: by what factor; by default five per cent.
    """
    for power in range(1, 13):
        plain = step_seconds(work, link, 2**power, form="float32")
        if plain >= gain * step_seconds(work, link, 2**power, form=form, every=every):
            return 2**power
    return None


def longest_step_worth_saving(
    link: Link, parameters: int, devices: int, gain: float = 1.05
) -> float:
    """Return the seconds of computation above which an all-reduce costs less than ``gain``."""
    return ring_seconds(4.0 * parameters, devices, link) / (gain - 1)


def fit_link(points: Sequence[tuple[float, int, float]]) -> Link:
    """Fit a link to measured all-reduces by least squares.

    Args:
      points: (bytes, devices, seconds) of each; at least two of different sizes.

    Raises:
      ValueError: if the points do not tell latency and speed apart.
    """
    rows = [(2 * (d - 1), 2 * (d - 1) / d * size, t) for size, d, t in points]
    aa = sum(a * a for a, _, _ in rows)
    ab = sum(a * b for a, b, _ in rows)
    bb = sum(b * b for _, b, _ in rows)
    at = sum(a * t for a, _, t in rows)
    bt = sum(b * t for _, b, t in rows)
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:
        raise ValueError(f"points={list(points)}: must have two sizes or more")
    latency = (at * bb - bt * ab) / determinant
    per_byte = (bt * aa - at * ab) / determinant
    if per_byte <= 0:
        raise ValueError(f"points={list(points)}: must take longer the more bytes there are")
    return Link(1 / per_byte, max(0.0, latency))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    step_us: float = 280.0
    """Microseconds of a gradient step's computation on one device."""
    parameters: int = 10_934
    """Numbers in the gradient."""
    coding_us: float = 20.0
    """Microseconds to encode and decode a compressed gradient."""
    gigabytes_per_second: float = 100.0
    """Speed of the link between neighbouring devices."""
    latency_us: float = 5.0
    """Microseconds for a message of no length."""
    every: int = 8
    """Gradient steps between averagings."""
    devices: tuple[int, ...] = (8, 64, 512)
    """Device counts to predict for."""
    check: str | None = None
    """A file of ``python -m benchmarks.scaling --json``: compare its steps with the model's, the
    link fitted to its all-reduces."""
    json: str | None = None
    """File to write the predictions to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.scaling.model", description=__doc__)
    check_writable(flags.json)
    for name in ("step_us", "parameters", "gigabytes_per_second", "every"):
        if getattr(flags, name) <= 0:
            raise ValueError(f"{name}={getattr(flags, name)}: must be above 0")
    for name in ("coding_us", "latency_us"):
        if getattr(flags, name) < 0:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least 0")
    if any(count < 1 for count in flags.devices):
        raise ValueError(f"devices={flags.devices}: must be at least 1 each")
    work = Work(1e-6 * flags.step_us, flags.parameters, 1e-6 * flags.coding_us)
    link = Link(1e9 * flags.gigabytes_per_second, 1e-6 * flags.latency_us)
    rows = [
        [
            count,
            *(
                f"{efficiency(work, link, count, form=form, every=flags.every):.1%}"
                for form in FORMS
            ),
        ]
        for count in flags.devices
    ]
    print("efficiency of weak scaling: one device's time over that of D with as much work each")
    print(format_table(["D", *FORMS[:-1], f"average every {flags.every}"], rows))
    print()
    for form in FORMS[1:]:
        count = pays_from(work, link, form, every=flags.every)
        where = "nowhere up to 4096 devices" if count is None else f"from {count} devices on"
        print(f"{form}: gains 5 % over float32 {where}")
    most = max(flags.devices)
    if most > 1:
        seconds = longest_step_worth_saving(link, flags.parameters, most)
        print(f"on {most} devices a step of more than {1e3 * seconds:.3g} ms has nothing to save")
    report: dict[str, Any] = {"work": work, "link": link, "efficiency": rows}
    if flags.check is not None:
        report["check"] = _check(Path(flags.check))
    if flags.json is not None:
        write_json(flags.json, report)


def _check(path: Path) -> list[dict[str, Any]]:
    """Print steps as the model has them, with the link fitted to all-reduces, and as measured."""
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
        took = row["us/gradient step"]["median"]
        checked.append([row["setting"], row["D"], took, predicted, f"{predicted / took - 1:+.0%}"])
    headers = ["setting", "D", "measured, us", "predicted, us", "off"]
    print(
        f"\nsteps with all-reduces by a link of {link.bytes_per_second / 1e9:.3g} GB/s and "
        f"{1e6 * link.latency:.3g} us a message, as fitted to all-reduces alone; first strong, "
        "then weak scaling"
    )
    print(format_table(headers, checked))
    return [dict(zip(headers, row, strict=True)) for row in checked]


if __name__ == "__main__":
    sys.exit(main())
