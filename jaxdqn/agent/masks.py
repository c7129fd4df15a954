"""Acting at a time step, with or without a mask of legal actions."""

from __future__ import annotations

import inspect

from jaxdqn.envs.frame_stack import observed
from jaxdqn.losses import is_masked
from jaxdqn.types import (
    ActInfo,
    Agent,
    Array,
    Exploration,
    Params,
    PyTree,
    TimeStep,
)


def act_on(
    agent: Agent,
    key: Array,
    params: Params,
    carry: PyTree,
    frames: PyTree,
    timestep: TimeStep,
    exploration: Exploration | None,
) -> tuple[Array, PyTree, ActInfo]:
    """Call ``agent.act`` on the newest observation of E environments.

    Args:
      agent: built-in or custom agent.
      key: random key, consumed if ``exploration`` is given.
      params: parameters of the network.
      carry: recurrent carry, leaves [E, ...]; empty for feed-forward networks.
      frames: frame stacks [E, O, S], as ``ActorState.frames``; empty without stacks.
      timestep: time step with leaves [E, ...]. A mask is passed to ``act`` only if there is one,
        because a custom agent for environments without masks need not accept it.
      exploration: exploration parameters; None for greedy actions.

    Returns:
      Actions [E] int32, the next carry, and diagnostics, as ``Agent.act``.
    """
    masks = (timestep.legal,) if is_masked(timestep.legal) else ()
    obs = observed(frames, timestep.obs)
    return agent.act(key, params, carry, obs, timestep.first, exploration, *masks)


def check_takes_masks(agent: Agent) -> None:
    """Check that a custom agent accepts masks.

    Raises:
      ValueError: if its ``act`` does not accept ``legal``.
    """
    try:
        inspect.signature(agent.act).bind(*[None] * 7)
    except TypeError as error:
        raise ValueError(
            "agent: act must take legal [E, A] as its last argument, act(key, params, carry, obs, "
            "first, exploration, legal=()), in an environment that masks actions"
        ) from error
