"""Environments of JAX suites, named ``SUITE:ID``, with the contract of ``Environment``.

Each suite has one module here, which alone imports the suite, when an environment is made.
``pixels`` is the suite of this library.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from jaxdqn.envs.suites.adapter import build
from jaxdqn.types import Environment


def make_suite(name: str, arguments: Mapping[str, Any]) -> Environment:
    """Build an environment of a suite, with next-step autoreset instead of the suite's own.

    Args:
        name: ``SUITE:ID``, with a suite of ``jaxdqn.config.suite_envs``.
        arguments: values by name; the module of the suite documents them.

    Raises:
        ValueError: if the suite is not installed, the id or an argument is unknown, or the actions
            are continuous.
    """
    suite, _, ident = name.partition(":")
    source = import_module(f"jaxdqn.envs.suites.{suite}").source
    return build(name, lambda: source(ident, arguments), arguments)
