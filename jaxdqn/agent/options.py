"""Options of an agent, and their validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import optax

from jaxdqn.agent.sequence_loss import Sequences
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.types import Array, BatchLoss, Explore, Hyper, Params

Optimizer = Callable[[Hyper], optax.GradientTransformation]
Bootstrap = Literal["greedy", "soft", "munchausen", "none"]
ExplorationKind = Literal["epsilon_greedy", "boltzmann"]


class AgentOptions(NamedTuple):
    """Options of ``make_agent``, which documents them."""

    double: bool
    loss: str | BatchLoss
    bootstrap: Bootstrap
    exploration: ExplorationKind | Explore
    accumulate: int
    target_period: int
    polyak: bool
    sequences: Sequences | None
    rescale: bool
    masked: bool
    target_epsilon: float | None
    measure_gradient: Callable[[Params, Hyper], dict[str, Array]] | None


def check_options(options: AgentOptions) -> None:
    """Raise a ValueError for an invalid value or combination."""
    for name in ("accumulate", "target_period"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: must be at least 1")
    choices = {
        "loss": tuple(LOSSES),
        "bootstrap": ("greedy", "soft", "munchausen", "none"),
        "exploration": ("epsilon_greedy", "boltzmann"),
    }
    for name, known in choices.items():
        value = getattr(options, name)
        if value not in known and not (name != "bootstrap" and callable(value)):
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(known)}")
    if callable(options.loss):
        _check_batch_loss(options)
        return
    bootstrap, loss, head = options.bootstrap, options.loss, LOSSES[options.loss].head
    if options.double and bootstrap != "greedy":
        raise ValueError(f"double=True: must be False with bootstrap={bootstrap!r}")
    if bootstrap in ("soft", "munchausen") and head == "categorical":
        raise ValueError(f"bootstrap={bootstrap!r}: must be greedy with loss={loss!r}")
    if bootstrap == "none" and head != "linear":
        raise ValueError(f"bootstrap='none' is not supported with loss={loss!r}")
    if bootstrap == "none" and options.polyak:
        raise ValueError("polyak=True: must be False with bootstrap='none'")
    if options.sequences is not None and bootstrap != "greedy":
        raise ValueError(f"bootstrap={bootstrap!r}: must be greedy with sequences")
    if options.rescale and options.sequences is None:
        raise ValueError("rescale=True: must be False without sequences")
    if options.target_epsilon is None:
        return
    if bootstrap != "greedy" or head != "linear" or options.sequences is not None:
        raise ValueError(
            f"target_epsilon={options.target_epsilon}: must be None unless bootstrap='greedy', "
            "with a loss of action values, without sequences"
        )


def _check_batch_loss(options: AgentOptions) -> None:
    """Raise a ValueError for an option that a custom loss excludes."""
    for name, valid in (
        ("double", (False,)),
        ("rescale", (False,)),
        ("bootstrap", ("greedy", "none")),
        ("target_epsilon", (None,)),
    ):
        value = getattr(options, name)
        if value not in valid:
            raise ValueError(
                f"{name}={value!r}: must be {valid[0]!r} with a custom loss, which it does not "
                "change"
            )
    if options.bootstrap == "none" and options.polyak:
        raise ValueError("polyak=True: must be False with bootstrap='none'")
