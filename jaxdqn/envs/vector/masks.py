"""Masks of legal actions in the infos of Gymnasium environments: ``info["action_mask"]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MASK = "action_mask"
"""Entry of an info: [A] bool, or integers 0 and 1. For a product of action spaces it is one mask of
all combinations, in row-major order."""


def has_mask(env: Any) -> bool:
    """Return whether the info of a reset has a mask; False if the reset fails, as the run's will.

    Args:
      env: a Gymnasium environment, which is reset.
    """
    try:
        _, info = env.reset(seed=0)
    except Exception:  # a simulator may raise anything
        return False
    return MASK in info


def read_mask(value: Any, index: int, num_actions: int, *, ended: bool = False) -> np.ndarray:
    """Return the mask of one environment, [A] bool.

    Args:
      value: the entry of its info; None if there is none.
      index: of the environment, for the message.
      num_actions: A.
      ended: if the episode has ended, there need be no mask; no action is legal then.

    Raises:
      ValueError: naming the environment, if the mask is missing, or of another size or kind.
    """
    if value is None:
        if ended:
            return np.zeros(num_actions, bool)
        raise ValueError(
            f"environment {index} returned no {MASK} in its info, and did at its first reset"
        )
    mask = None if isinstance(value, tuple) else np.asarray(value)
    if mask is None or mask.size != num_actions or mask.dtype.kind not in "biu":
        found = "a tuple" if mask is None else f"{mask.dtype}{list(mask.shape)}"
        raise ValueError(
            f"environment {index} returned an {MASK} of {found}, and must return bool or int "
            f"[{num_actions}], of all combinations for several actions"
        )
    return mask.reshape(num_actions).astype(bool)


def read_masks(infos: Mapping[str, Any], ended: np.ndarray, num_actions: int) -> np.ndarray:
    """Return the masks [E, A] bool from the infos of a vector environment of Gymnasium.

    Args:
      infos: of E environments; ``_action_mask`` [E] says which of them have one.
      ended: ``[E]`` bool
      num_actions: A.

    Raises:
      ValueError: as ``read_mask``.
    """
    values = infos.get(MASK, ())
    present = infos.get("_" + MASK, np.zeros(len(ended), bool))
    found = [values[index] if present[index] else None for index in range(len(ended))]
    return np.stack([
        read_mask(value, index, num_actions, ended=bool(ended[index]))
        for index, value in enumerate(found)
    ])  # fmt: skip
