"""Sweeps: hyper-parameters with several values each, as ``NAME=VALUE,VALUE,...``.

Imports no JAX.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jaxdqn.config.algorithm_rules import default_of, is_enabled
from jaxdqn.config.option import choices_text
from jaxdqn.config.options import PARALLEL_OPTIONS, RULES, SWEEPABLE
from jaxdqn.errors import reject, suggest

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

_LEARNER_LIMIT = 2**14


def read_sweep(text: str) -> tuple[str, tuple[float, ...]]:
    """Return the name and the values of ``NAME=VALUE,VALUE,...``.

    Raises:
        ValueError: if a value is not a number.
    """
    name, _, values = text.partition("=")
    return name.strip().lstrip("-").replace("-", "_"), tuple(map(float, values.split(",")))


def validate_sweep(config: Config) -> None:
    """Check the sweep and the number of learners.

    Raises:
        ValueError: if a sweep is malformed, is not of a traced scalar in use, or has invalid or
            equal values, or if there are too many learners.
    """
    names: list[str] = []
    for text in config.sweep:
        try:
            name, values = read_sweep(text)
        except ValueError:
            reject("sweep", text, "NAME=VALUE,VALUE,... with numbers, as in gamma=0.99,0.997")
        extra = config.extra_scalars
        if name not in SWEEPABLE and name not in extra:
            _reject_name(text, name)
        if name in names:
            reject("sweep", text, f"the only sweep of {name}")
        names.append(name)
        if name not in extra:
            _validate_enabled(config, text, name)
        _validate_values(config, text, name, values)
    if config.seed + config.num_seeds > 2**32:
        reject("num_seeds", config.num_seeds, "at most 2**32 - seed")
    if config.learners > _LEARNER_LIMIT:
        reject("num_seeds", config.num_seeds, f"such that there are at most {_LEARNER_LIMIT} "
               "learners")  # fmt: skip


def _reject_name(text: str, name: str) -> None:
    if name in RULES:
        reject("sweep", text, f"of a traced scalar: {', '.join(SWEEPABLE)}; other fields change "
               "shapes or the program and need a run for each value")  # fmt: skip
    reject("sweep", text, f"of a field; nearest: {suggest(name, list(SWEEPABLE))}; "
           "extra_hyper adds scalars of your own")  # fmt: skip


def _validate_enabled(config: Config, text: str, name: str) -> None:
    if getattr(config, name) is None:
        reject("sweep", text, f"of an option in use: give {name} a value too")
    choices = RULES[name].swept_with
    if not is_enabled(config, choices):
        reject("sweep", text, f"of an option in use: {name} needs {choices_text(choices)}")


def _validate_values(config: Config, text: str, name: str, values: tuple[float, ...]) -> None:
    """Check that each value is valid for one learner on one device."""
    single: dict[str, Any] = {other: default_of(other) for other in PARALLEL_OPTIONS}
    extra = config.extra_scalars
    for value in values:
        changed: dict[str, Any] = {name: value}
        if name in extra:
            pairs = {**extra, name: value}.items()
            changed = {"extra_hyper": tuple(f"{key}={number}" for key, number in pairs)}
        try:
            dataclasses.replace(config, **{**single, **changed})
        except ValueError as error:
            raise ValueError(f"sweep={text!r}: {error}") from None
    if len(set(values)) < len(values):
        reject("sweep", text, "of distinct values")
