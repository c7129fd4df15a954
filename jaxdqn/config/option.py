"""Declaration of an option together with its rule. Imports no JAX."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

Choices = Mapping[str, tuple[Any, ...]]
"""Values by name of option, as in ``{"loss": ("huber", "quantile")}``."""

_ALWAYS: Choices = MappingProxyType({})


class Rule(NamedTuple):
    """Rule of one option; validation, help and ``Hyper`` are derived from it."""

    group: str = "Run"
    """Section of the help."""
    between: tuple[float, float] | None = None
    """Minimum and maximum value."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Collection[str] | None = None
    """Accepted names; names may be registered after the declaration."""
    only_with: Choices = _ALWAYS
    """Values of other options with which this option has an effect; otherwise only its default is
    accepted."""
    swept_with: Choices = _ALWAYS
    """Values of other options with which this option can be swept; a single value is always
    accepted."""
    sweepable: bool = False
    """The option is a traced float32 scalar of the training step: a field of ``Hyper``."""
    parallel: bool = False
    """The option configures devices or learners; its default is one learner on one device."""
    replicas_only: bool = False
    """The option has an effect only on data-parallel replicas."""
    everyday: bool = False
    """The option is in the short help."""
    formerly: str | None = None
    """Name in the previous release; it is still accepted."""
    former_values: Mapping[Any, Any] = _ALWAYS
    """Current value by value under the former name; other values are unchanged."""

    def violated(self, value: float) -> str | None:
        """Return the constraint that ``value`` violates, as text; None if it violates none."""
        if self.between is not None:
            low, high = self.between
            return None if low <= value <= high else f"between {low} and {high}"
        bounds = [
            (f"{words} {bound}", holds(value, bound))
            for words, bound, holds in (
                ("at least", self.at_least, operator.ge),
                ("above", self.above, operator.gt),
                ("at most", self.at_most, operator.le),
                ("below", self.below, operator.lt),
            )
            if bound is not None
        ]
        if all(holds for _, holds in bounds):
            return None
        if self.at_least is not None:  # a count: name only the violated one of two distant bounds
            return next(text for text, holds in bounds if not holds)
        return " and ".join(text for text, _ in bounds)


def option(
    default: T,
    *,
    group: str,
    between: tuple[float, float] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Collection[str] | None = None,
    only_with: Mapping[str, Any] | None = None,
    swept_with: Mapping[str, Any] | None = None,
    sweepable: bool = False,
    parallel: bool = False,
    replicas_only: bool = False,
    everyday: bool = False,
    formerly: str | None = None,
    former_values: Mapping[Any, Any] | None = None,
) -> T:
    """Declare a dataclass field with its default and its ``Rule``.

    The docstring below the field is its help. In ``only_with`` and ``swept_with``, a tuple of one
    value may be written as that value. By default ``swept_with`` is ``only_with``.
    """
    rule = Rule(
        group=group,
        between=between,
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        choices=choices,
        only_with=_choices(only_with),
        swept_with=_choices(swept_with or only_with),
        sweepable=sweepable,
        parallel=parallel or replicas_only,
        replicas_only=replicas_only,
        everyday=everyday,
        formerly=formerly,
        former_values=former_values or {},
    )
    return dataclasses.field(default=default, metadata={"rule": rule})


def _choices(values: Mapping[str, Any] | None) -> Choices:
    return {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in (values or {}).items()
    }


def rules(options: type[Any]) -> dict[str, Rule]:
    """Return the rule of each field of a dataclass, in the order of declaration."""
    return {field.name: field.metadata.get("rule", Rule()) for field in dataclasses.fields(options)}


def choices_text(choices: Choices) -> str:
    """Return choices as text: ``loss='huber' or loss='quantile'``."""
    return " or ".join(f"{name}={value!r}" for name, values in choices.items() for value in values)
