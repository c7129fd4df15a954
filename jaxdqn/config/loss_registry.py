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
    its location ``module:name``. ``abs_td`` is the priority of the example in a prioritised replay,
    before the exponent."""
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


BUILT_IN = tuple(LOSSES)
"""Names of the losses of the library."""


def register_loss(name: str, function: str | Callable[..., Any], head: Head = "linear") -> None:
    """Register a loss, so that ``Config(loss=name)`` is accepted.

    Another call with the same name replaces the loss.

    Args:
      name: an identifier that is not the name of a built-in loss.
      function: see ``Loss.function``.
      head: network head that the loss needs, one of ``HEADS``.

    Raises:
      ValueError: if the name is built in or no identifier, the head is unknown, or the function is
        neither callable nor ``module:name``.
    """
    if not name.isidentifier() or name in BUILT_IN:
        raise ValueError(f"name={name!r}: must be an identifier and none of {', '.join(BUILT_IN)}")
    if head not in HEADS:
        raise ValueError(f"head={head!r}: must be one of {', '.join(HEADS)}")
    if not callable(function) and ":" not in function:
        raise ValueError(f"function={function!r}: must be a function or 'module:name'")
    LOSSES[name] = Loss(function, head)


class MissingLoss:
    """Placeholder for a recorded run's loss, if this process has not registered that loss.

    Acting needs only the head of the loss. For learning, the loss must be registered.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, example: Any, hyper: Any) -> Any:
        """Raise a ``ValueError``."""
        raise ValueError(
            f"loss={self.name!r}: must be registered by jaxdqn.register_loss in this process to "
            "learn"
        )


def register_missing_loss(name: str, head: Head) -> None:
    """Register the name and the head of a run's loss, unless the loss is registered.

    Raises:
      ValueError: if the loss is registered with another head.
    """
    if name not in LOSSES or isinstance(LOSSES[name].function, MissingLoss):
        register_loss(name, MissingLoss(name), head)
    elif LOSSES[name].head != head:
        raise ValueError(
            f"head={LOSSES[name].head!r}: must be {head!r} for loss={name!r}, as in the run"
        )
