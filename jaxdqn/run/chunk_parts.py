"""Division of chunks into parts; a run checks for a stop request after each part."""

from __future__ import annotations

from jaxdqn.config.config import Config

LONG_CHUNK = 1.0
"""Duration in seconds above which a chunk is divided into parts."""
PART_SECONDS = 0.5
"""Target duration of a part in seconds."""
FIRST_PARTS = 16
"""Minimum number of parts of a long first chunk of a process with a deadline."""


def first_part(config: Config, least: int = 1) -> int | None:
    """Return the iterations per part of the first chunk, whose duration is not known.

    The number of parts is the first from 16 to 32 that divides the chunk, so that one program
    computes all parts. In a chunk that is too short for 32 parts it is the largest number that
    divides the chunk. If no number does, the chunk has 16 parts, or as many as fit, and a shorter
    last one. Parts consist of complete intervals between two averages of the parameters.

    Args:
        config: configuration of the run.
        least: minimum iterations of a part, except for the last one.

    Returns:
        The number of iterations; None without ``max_seconds``, or if the chunk is too short for two
        parts.
    """
    if config.max_seconds is None:
        return None
    unit = config.iterations_per_average
    units = config.iterations_per_chunk // unit
    most = units * unit // max(least, unit)
    if most < 2:
        return None
    enough = most >= 2 * FIRST_PARTS
    counts = range(FIRST_PARTS, 2 * FIRST_PARTS + 1) if enough else range(most, 1, -1)
    fits = (count for count in counts if units % count == 0)
    return units // next(fits, min(FIRST_PARTS, most)) * unit


def part_for_duration(config: Config, seconds: float) -> int | None:
    """Return the iterations per part of a chunk of this duration; None if it is not divided.

    The number is a multiple of the iterations between two averages of the parameters.
    """
    unit = config.iterations_per_average
    units = config.iterations_per_chunk // unit
    parts = -(-seconds // PART_SECONDS)
    part = max(1, round(units / parts))
    return part * unit if seconds > LONG_CHUNK and part < units else None


def divide_first_part(config: Config, first: int, part: int) -> int:
    """Return the largest number of iterations up to ``part`` that divides a first part.

    A chunk may then consist of first parts and parts of this size in any order, and its last part
    always has the same size. The number is at least the interval between two averages of the
    parameters.

    Args:
        config: configuration of the run.
        first: iterations of a first part.
        part: wanted iterations per part.
    """
    unit = config.iterations_per_average
    units = first // unit
    # A checkpoint of a run on one device may have a part shorter than an interval of averages.
    fits = (count for count in range(-(-first // part), units) if units % count == 0)
    return units // next(fits, units) * unit
