"""Numerical guard: undo a gradient step whose loss or gradient is not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.communication.collectives import Collectives
from jaxdqn.tree import pack
from jaxdqn.types import AgentState, Array, LearnInfo, PyTree, TrainState


def keep_finite(
    before: AgentState,
    after: AgentState,
    info: LearnInfo,
    collectives: Collectives,
    *,
    periodic: bool,
) -> tuple[AgentState, Array]:
    """Return the agent state after a gradient step, or before it if the step was not finite.

    A step is finite if its loss and its gradient norm are. A finite norm implies finite
    squares of the gradient, and so finite moments of the optimiser. Both values are known
    before the update, so the selection runs in the loops that compute the update and needs
    no separate pass. Parameters can still overflow; ``Metrics.lost`` reports that at the end
    of a chunk.

    The selection is a ``where``: under vmap a conditional would run both branches. All
    devices take the same decision, so that replicas stay equal. The flag is averaged over
    devices as float32, as the gradients are, so that the compiler can combine the two
    all-reduces.

    Args:
      before: state before the step.
      after: state after the step.
      info: diagnostics of the step.
      collectives: collectives of the replicas that decide together.
      periodic: whether the target network is replaced by the parameters when ``since_target``
        becomes 0.

    Returns:
      The agent state, and ``[]`` bool, whether the step was undone.
    """
    finite = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
    undone = collectives.mean((~finite).astype(jnp.float32)) > 0
    selected = jax.tree.map(lambda old, new: jnp.where(undone, old, new), before, after)
    if periodic:
        # Replace the target by the selected parameters. Otherwise the compiler may compute the
        # update a second time for the target, with other rounding.
        replaced = ~undone & (after.since_target == 0)
        target = jax.tree.map(
            lambda new, old: jnp.where(replaced, new, old), selected.params, before.target_params
        )
        selected = selected._replace(target_params=target)
    return selected, undone


@jax.named_scope("guard")
def all_finite(tree: PyTree) -> Array:
    """Return ``[]`` bool, whether every floating-point element is finite.

    Tests the sum of the magnitudes, which compiles to one loop. It is finite if every
    element is and the sum stays below the float32 maximum, about 3e38.
    """
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    sums = [jnp.sum(jnp.abs(leaf).astype(jnp.float32)) for leaf in jax.tree.leaves(pack(floats))]
    return jnp.isfinite(sum(sums, jnp.float32(0)))


def not_finite(tree: PyTree) -> list[str]:
    """Return the name and the count of non-finite elements of each leaf that has any.

    Runs on the host and waits for the arrays. Hyper-parameters are left out, because
    infinity marks those that are not in use.
    """
    names = []
    hyper = tree.hyper if isinstance(tree, TrainState) else ()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not any(leaf is value for value in hyper):
            count = int(np.sum(~np.isfinite(np.asarray(leaf, np.float32))))
            if count:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                names.append(f"{name} ({count} of {leaf.size})")
    return names
