"""Registry of losses that a configuration may name. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple

Head = Literal["linear", "categorical", "quantile", "implicit_quantile"]
HEADS: tuple[Head, ...] = ("linear", "categorical", "quantile", "implicit_quantile")


class Loss(NamedTuple):
    """A loss function and the network head that it needs."""

    function: str | Callable[..., Any]
    """``function(example, hyper) -> (loss [], abs_td [])`` for one ``jaxdqn.losses.Example``, or
    its location ``module:name``. ``abs_td`` is the raw priority of a prioritised replay."""
    head: Head = "linear"

    def load(self) -> Callable[..., Any]:
        """Return the function, imported if it is given by its location."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)


LOSSES: dict[str, Loss] = {
    "huber": Loss("jaxdqn.losses.registered:huber"),
    "squared": Loss("jaxdqn.losses.registered:squared"),
    "categorical": Loss("jaxdqn.losses.registered:categorical", "categorical"),
    "quantile": Loss("jaxdqn.losses.registered:quantile", "quantile"),
    "implicit_quantile": Loss("jaxdqn.losses.registered:quantile", "implicit_quantile"),
}


def register_loss(name: str, function: str | Callable[..., Any], head: Head = "linear") -> None:
    """Register a loss, so that ``Config(loss=name)`` is accepted.

    Args:
      name: an identifier that is not registered yet.
      function: see ``Loss.function``.
      head: output of the network for each action.

    Raises:
      ValueError: naming the argument, its value and the constraint.
    """
    if not name.isidentifier() or name in LOSSES:
        raise ValueError(f"name={name!r}: must be an identifier and none of {', '.join(LOSSES)}")
    if head not in HEADS:
        raise ValueError(f"head={head!r}: must be one of {', '.join(HEADS)}")
    if not callable(function) and ":" not in function:
        raise ValueError(f"function={function!r}: must be a function or 'module:name'")
    LOSSES[name] = Loss(function, head)
