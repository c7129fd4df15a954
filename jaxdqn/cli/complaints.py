"""Error messages of the option parser, reworded like the other errors. Imports no JAX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

_NOUNS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}

_UNREADABLE = re.compile(r"Error parsing (?P<flag>\S+?):.*'(?P<value>[^']*)'\]?$")
_NO_VALUE = re.compile(r"Missing value for argument '(?P<flag>[^']+)'")
_NO_CHOICE = re.compile(r"invalid choice '(?P<value>[^']*)' for argument '(?P<flag>[^']+)'")
_ABSENT = re.compile(r"Missing from (?P<prog>.+?): (?P<term>(?:--)?\S+(?: [A-Z:.]+)?) ")


def plain(text: str, kinds: Mapping[str, Any]) -> str:
    """Reword an error message of tyro like the other errors.

    Args:
        text: message, as one line.
        kinds: type of each flag, by name with hyphens: ``--num-envs``.
    """
    if match := _UNREADABLE.match(text):
        flag = match["flag"]
        return f"{flag} {match['value']}: must be {_constraint(kinds.get(flag, str))}"
    if match := _NO_CHOICE.match(text):
        flag = match["flag"]
        return f"{flag} {match['value']}: must be {_constraint(kinds.get(flag, str))}"
    if match := _NO_VALUE.match(text):
        flag = match["flag"]
        return f"{flag}: must be followed by a value, {_constraint(kinds.get(flag, str))}"
    if match := _ABSENT.match(text):
        return f"{match['term']}: must be given; {match['prog']} --help describes it"
    return text


def _constraint(kind: Any) -> str:
    """Describe the valid values of a type."""
    if get_origin(kind) is Literal:
        *others, last = map(str, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(kind) is tuple:
        return _PLURALS.get(get_args(kind)[0], "texts")
    parts = [part for part in get_args(kind) if part is not type(None)]
    if len(parts) == 1 and type(None) in get_args(kind):
        return f"{_constraint(parts[0])} or None"
    return _NOUNS.get(kind, "a text")
