"""Settings, seeds and commands of a study as text: ``gamma=0.9``, ``seeds 0-4``.

Imports no JAX.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxdqn.config.config import Config
from jaxdqn.errors import suggest

EXECUTION_FIELDS = (
    "seed", "num_seeds", "population", "devices", "model_devices", "mapping", "checkpoint_every",
    "checkpoint_signals", "keep", "max_seconds", "replay_in_checkpoint", "env_processes",
    "restart_envs", "check_bounds", "reset", "reset_pool",
)  # fmt: skip
"""Fields that choose which seeds run, on which devices and for how long, and how resets are made.

They do not identify a cell; every other field does.
"""

_FLAG_OF = {"env": "envs", "seed": "first-seed", "num_seeds": "seeds",
            "total_rows": "total-rows", "max_seconds": "max-seconds"}  # fmt: skip
_UNSUPPORTED = {
    "sweep": "each value is a separate cell; run the command once per value",
    "stop_when": "every run trains for its complete budget, which makes runs comparable",
}


def ranges(seeds: Iterable[int]) -> list[range]:
    """Return the seeds as ascending ranges of consecutive numbers."""
    ordered = sorted(set(seeds))
    # Consecutive numbers have the same difference from their index.
    runs = itertools.groupby(enumerate(ordered), lambda item: item[1] - item[0])
    consecutive = [[seed for _, seed in run] for _, run in runs]
    return [range(seeds[0], seeds[-1] + 1) for seeds in consecutive]


def seeds_text(seeds: Iterable[int]) -> str:
    """Format seeds: ``seed 3``, ``seeds 0-4, 7``."""
    parts = ranges(seeds)
    text = ", ".join(
        str(part.start) if len(part) == 1 else f"{part.start}-{part[-1]}" for part in parts
    )
    return f"seed{'s' if sum(map(len, parts)) > 1 else ''} {text}"


def label(preset: str, settings: Mapping[str, Any], *details: str) -> str:
    """Return the display name of a preset with settings: ``dqn (gamma=0.9)``."""
    texts = [*(f"{field}={as_text(value)}" for field, value in settings.items()), *details]
    return f"{preset} ({', '.join(texts)})" if texts else preset


def command_of(
    preset: str,
    env: str,
    seeds: range,
    settings: Mapping[str, Any],
    *,
    out: str,
    total_rows: int | None = None,
    seeds_at_once: int | None = None,
    parts: Mapping[str, str] | None = None,
) -> str:
    """Return the command that trains a cell; a custom environment among ``parts`` replaces env."""
    parts = parts or {}
    words = ["jaxdqn", "study", "--presets", preset]
    words += [] if "environment" in parts else ["--envs", env]
    words += [word for name, value in parts.items() for word in (f"--{name}", value)]
    words += ["--first-seed", str(seeds.start), "--seeds", str(len(seeds))]
    if total_rows is not None:
        words += ["--total-rows", str(total_rows)]
    if seeds_at_once is not None:
        words += ["--seeds-at-once", str(seeds_at_once)]
    if settings:
        words += ["--set", *(f"{field}={as_text(value)}" for field, value in settings.items())]
    return shlex.join([*words, "--out", out])


def as_text(value: Any) -> str:
    """Format a value in the form that ``read_settings`` parses."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse configuration fields given as NAME=VALUE, each value by the type of its field.

    Raises:
        ValueError: if a text is malformed, names no field, or has a value of the wrong type; the
            message names the text.
    """
    kinds = get_type_hints(Config)
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise ValueError(f"set={text!r}: must be NAME=VALUE, as in gamma=0.9")
        if name not in kinds:
            raise ValueError(
                f"set={text!r}: must name a field; nearest: {suggest(name, list(kinds))}"
            )
        if name in _FLAG_OF:
            raise ValueError(f"set={text!r}: must be given as --{_FLAG_OF[name]}")
        if name in _UNSUPPORTED:
            raise ValueError(f"set={text!r}: must be omitted: {_UNSUPPORTED[name]}")
        if name in settings:
            raise ValueError(f"set={text!r}: must be the only setting of {name}")
        try:
            settings[name] = _read_value(kinds[name], value.strip())
        except ValueError as error:
            raise ValueError(f"set={text!r}: must be {error}") from None
    return settings


def _read_value(kind: Any, text: str) -> Any:
    """Parse the value of a field of type ``kind``.

    Raises:
        ValueError: if the text is not of that type; the message is the constraint.
    """
    kinds = (kind,) if kind in (bool, int, float, str) else get_args(kind)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if kinds[0] is str:
            return tuple(parts)
        try:
            return tuple(map(int, parts))
        except ValueError:
            raise ValueError("whole numbers separated by commas, as in 64,64") from None
    if get_origin(kind) is Literal:
        if text not in kinds:
            raise ValueError(f"one of {', '.join(kinds)}")
        return text
    if type(None) in kinds and text == "None":
        return None
    if bool in kinds:
        if text not in ("True", "False"):
            raise ValueError("True or False")
        return text == "True"
    for number, constraint in ((int, "a whole number"), (float, "a number")):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(text)
            raise ValueError(constraint)
    return text
