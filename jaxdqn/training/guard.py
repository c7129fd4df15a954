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
    """Return the agent state after a gradient step, or the one before a non-finite step.

    A step is finite if its loss and its gradient norm are finite. A finite norm implies finite
    squared gradients, and therefore finite optimiser moments. Both values are known before the
    update, so XLA fuses the selection with the loops of the update and needs no separate pass.
    Parameters can still overflow; ``Metrics.lost`` reports that at the end of a chunk.

    The selection is a ``where``, because a conditional runs both branches under vmap anyway. All
    devices make the same decision, so replicas remain equal. The flag is averaged over devices as
    float32, like the gradients, so the compiler can combine the two all-reduces.

    Args:
      before: state before the step.
      after: state after the step.
      info: diagnostics of the step.
      collectives: collectives of the replicas that decide together.
      periodic: True if the target network is a periodic copy of the parameters, made when
        ``since_target`` becomes 0.

    Returns:
      The agent state, and a bool [] that is True if the step was undone.
    """
    finite = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
    undone = collectives.mean((~finite).astype(jnp.float32)) > 0
    selected = jax.tree.map(lambda old, new: jnp.where(undone, old, new), before, after)
    if periodic:
        # Copy the selected parameters into the target. Otherwise the compiler may compute the
        # update a second time for the target, with different rounding.
        replaced = ~undone & (after.since_target == 0)
        target = jax.tree.map(
            lambda new, old: jnp.where(replaced, new, old), selected.params, before.target_params
        )
        selected = selected._replace(target_params=target)
    return selected, undone


@jax.named_scope("guard")
def all_finite(tree: PyTree) -> Array:
    """Return a bool [] that is True if every floating-point element is finite.

    The test is on the sum of the magnitudes, which compiles to one loop. The result is also
    False if all elements are finite but their sum exceeds the float32 maximum, about 3e38.
    """
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    sums = [jnp.sum(jnp.abs(leaf).astype(jnp.float32)) for leaf in jax.tree.leaves(pack(floats))]
    return jnp.isfinite(sum(sums, jnp.float32(0)))


def not_finite(tree: PyTree) -> list[str]:
    """List the leaves with non-finite elements, as ``"NAME (COUNT of SIZE)"``.

    This runs on the host and waits for the arrays. In a ``TrainState``, built-in hyper-parameters
    are skipped, because an unused one may be infinite.
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
