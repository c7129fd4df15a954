"""What makes one cell of a study another, as text: ``gamma=0.9``, ``seeds 0-4``, a command.

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

PLACE = (
    "seed", "num_seeds", "population", "devices", "model_devices", "mapping", "checkpoint_every",
    "keep", "max_seconds", "replay_in_checkpoint",
)  # fmt: skip
"""Fields that say which seeds run, where and for how long: with others a cell is another one."""

_BY_FLAG = {"env": "envs", "seed": "first-seed", "num_seeds": "seeds",
            "total_rows": "total-rows", "max_seconds": "max-seconds"}  # fmt: skip
_NEVER = {
    "sweep": "each value is a cell of its own; start the command once with each",
    "stop_when_solved": "every run uses up its budget, so that they compare",
}


def ranges(seeds: Iterable[int]) -> list[range]:
    """Return ascending ranges that together hold the seeds."""
    ordered = sorted(set(seeds))
    parts = itertools.groupby(enumerate(ordered), lambda item: item[1] - item[0])
    each = [[seed for _, seed in part] for _, part in parts]
    return [range(part[0], part[-1] + 1) for part in each]


def seeds_text(seeds: Iterable[int]) -> str:
    """Return seeds as text: ``seed 3``, ``seeds 0-4, 7``."""
    parts = ranges(seeds)
    text = ", ".join(
        str(part.start) if len(part) == 1 else f"{part.start}-{part[-1]}" for part in parts
    )
    return f"seed{'s' if sum(map(len, parts)) > 1 else ''} {text}"


def label(name: str, settings: Mapping[str, Any], *more: str) -> str:
    """Return how a preset with settings is called: ``dqn (gamma=0.9)``."""
    texts = [*(f"{field}={as_text(value)}" for field, value in settings.items()), *more]
    return f"{name} ({', '.join(texts)})" if texts else name


def command_of(
    name: str,
    env: str,
    seeds: range,
    settings: Mapping[str, Any],
    *,
    out: str,
    total_rows: int | None = None,
    seeds_at_once: int | None = None,
) -> str:
    """Return the command that runs a cell."""
    words = ["jaxdqn", "study", "--presets", name, "--envs", env]
    words += ["--first-seed", str(seeds.start), "--seeds", str(len(seeds))]
    if total_rows is not None:
        words += ["--total-rows", str(total_rows)]
    if seeds_at_once is not None:
        words += ["--seeds-at-once", str(seeds_at_once)]
    if settings:
        words += ["--set", *(f"{field}={as_text(value)}" for field, value in settings.items())]
    return shlex.join([*words, "--out", out])


def as_text(value: Any) -> str:
    """Return a value as ``read_settings`` reads it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read fields of the configuration from texts NAME=VALUE, each by its type.

    Raises:
        ValueError: naming the text, if it is not of that form, there is no such field, or the
            value is not of its type.
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
                f"set={text!r}: must be of a field; nearest: {suggest(name, list(kinds))}"
            )
        if name in _BY_FLAG:
            raise ValueError(f"set={text!r}: must be left to --{_BY_FLAG[name]}")
        if name in _NEVER:
            raise ValueError(f"set={text!r}: must be left out, {_NEVER[name]}")
        if name in settings:
            raise ValueError(f"set={text!r}: must be the only one of {name}")
        try:
            settings[name] = _read_value(kinds[name], value.strip())
        except ValueError as error:
            raise ValueError(f"set={text!r}: must be {error}") from None
    return settings


def _read_value(kind: Any, text: str) -> Any:
    """Return the value of a field of type ``kind``; raise what it must be."""
    kinds = (kind,) if kind in (bool, int, float, str) else get_args(kind)
    if get_origin(kind) is tuple:
        try:
            return tuple(int(part) for part in text.split(",") if part.strip())
        except ValueError:
            raise ValueError("whole numbers with commas between, as in 64,64") from None
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
    for number, what in ((int, "a whole number"), (float, "a number")):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(text)
            raise ValueError(what)
    return text
