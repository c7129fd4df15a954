"""Precision of the matrix products and convolutions of an agent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxdqn.types import Agent


def with_matmul_precision(agent: Agent, precision: str) -> Agent:
    """Set the precision of the matrix products in all functions of an agent.

    The functions are traced under ``jax.default_matmul_precision``, which also applies to custom
    networks and losses. A product that specifies its precision explicitly keeps it.

    Args:
      agent: built-in or custom agent.
      precision: a value of ``Config.matmul_precision``; ``default`` returns the agent unchanged.
    """
    if precision == "default":
        return agent

    def at_precision(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(*arguments, **named)

        return call

    return agent._replace(
        init=at_precision(agent.init),
        act=at_precision(agent.act),
        learn=at_precision(agent.learn),
        gradient=None if agent.gradient is None else at_precision(agent.gradient),
        apply=None if agent.apply is None else at_precision(agent.apply),
    )
