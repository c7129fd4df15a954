"""The losses that a configuration may name. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple

Head = Literal["linear", "categorical", "quantile", "implicit_quantile"]
HEADS: tuple[Head, ...] = ("linear", "categorical", "quantile", "implicit_quantile")


class Loss(NamedTuple):
    """A loss and the head that gives what it needs."""

    function: str | Callable[..., Any]
    """``function(example, hyper) -> (loss [], abs_td [])`` of one ``jaxdqn.losses.Example``, or
    where it is, as ``module:name``. The second is the raw priority of a prioritised replay."""
    head: Head = "linear"

    def load(self) -> Callable[..., Any]:
        """Return the function."""
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
    """Let configurations name a loss of your own: ``Config(loss=name)``.

    Args:
      name: not taken yet.
      function: as ``Loss`` has it.
      head: what the network says of each action.

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    if not name.isidentifier() or name in LOSSES:
        raise ValueError(f"name={name!r}: must be an identifier and none of {', '.join(LOSSES)}")
    if head not in HEADS:
        raise ValueError(f"head={head!r}: must be one of {', '.join(HEADS)}")
    if not callable(function) and ":" not in function:
        raise ValueError(f"function={function!r}: must be a function or 'module:name'")
    LOSSES[name] = Loss(function, head)
