"""Masks of legal actions in the infos of Gymnasium environments: ``info["action_mask"]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MASK = "action_mask"
"""Key of an info entry: [A] bool, or integers 0 and 1. For several discrete actions it is one mask
of all combinations, in row-major order."""


def has_mask(env: Any) -> bool:
    """Return True if the info of a reset contains a mask.

    Return False if the reset fails; the reset of the run will then report the failure.

    Args:
      env: a Gymnasium environment; it is reset.
    """
    try:
        _, info = env.reset(seed=0)
    except Exception:  # a simulator may raise anything
        return False
    return MASK in info


def read_mask(value: Any, index: int, num_actions: int, *, ended: bool = False) -> np.ndarray:
    """Return the mask of one environment, [A] bool.

    Args:
      value: the info entry of the environment; None if it is missing.
      index: index of the environment, for the error message.
      num_actions: A, number of actions.
      ended: True if the episode has ended. The mask may then be missing, and no action is legal.

    Raises:
      ValueError: naming the environment, if the mask is missing or has a wrong size or dtype.
    """
    if value is None:
        if ended:
            return np.zeros(num_actions, bool)
        raise ValueError(
            f"environment {index} returned no {MASK} in its info, but did at its first reset"
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
      infos: infos of E environments; ``_action_mask`` [E] is True for environments with a mask.
      ended: ``[E]`` bool, True where the episode has ended.
      num_actions: A, number of actions.

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
