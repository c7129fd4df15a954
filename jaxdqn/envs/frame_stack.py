"""Frame stacks for acting, equal to the stacks that the replay gathers when sampling."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxdqn.types import Array


def initial_frames(obs: Array, frame_stack: int) -> Any:
    """Return stacks [E, O, S] with ``obs`` [E, O] as the newest frame and zeros before it.

    With ``frame_stack`` 1 the result is empty.
    """
    if frame_stack == 1:
        return ()
    zeros = jnp.zeros((*obs.shape, frame_stack - 1), obs.dtype)
    return jnp.concatenate([zeros, obs[..., None]], axis=-1)


def push_frame(frames: Any, obs: Array, first: Array) -> Any:
    """Append ``obs`` [E, O] and clear older frames where ``first`` [E] is True.

    Without frame stacks ``frames`` is empty and is returned unchanged.
    """
    if isinstance(frames, tuple):
        return ()
    # first[E] -> [E, 1, ..., 1], to broadcast against [E, O, S].
    opens = first.reshape(*first.shape, *(1,) * (frames.ndim - first.ndim))
    kept = jnp.where(opens, jnp.zeros_like(frames), frames)
    return jnp.concatenate([kept[..., 1:], obs[..., None]], axis=-1)


def observed(frames: Any, obs: Array) -> Array:
    """Return the network input: the stacks, or ``obs`` without frame stacks."""
    return obs if isinstance(frames, tuple) else frames
