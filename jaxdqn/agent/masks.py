"""Acting of an agent at a time step, with the mask of legal actions if there is one."""

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
    """Return ``agent.act`` at the newest observation of E environments.

    Args:
      agent: acts.
      key: is consumed, with ``exploration``.
      params: of the agent.
      carry: of the agent.
      frames: ``ActorState.frames``
      timestep: leaves [E, ...]; its mask is passed only if there is one, since custom agents for
        environments without masks need not take it.
      exploration: as ``Agent.act`` takes it.
    """
    masks = (timestep.legal,) if is_masked(timestep.legal) else ()
    obs = observed(frames, timestep.obs)
    return agent.act(key, params, carry, obs, timestep.first, exploration, *masks)


def check_takes_masks(agent: Agent) -> None:
    """Check that a custom agent takes masks.

    Raises:
      ValueError: if its ``act`` does not take ``legal``.
    """
    try:
        inspect.signature(agent.act).bind(*[None] * 7)
    except TypeError as error:
        raise ValueError(
            "agent: act must take legal [E, A] as its last argument, act(key, params, carry, obs, "
            "first, exploration, legal=()), in an environment that masks actions"
        ) from error
