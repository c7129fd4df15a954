"""The numerical guard: a gradient step that leaves something not finite is undone."""

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
    """Return the learner after a gradient step, or as it was before if that was not finite.

    Looked at are the loss and the norm of the gradient: it is finite only if the
    squares are, and then so are the optimiser's moments. Both are known before
    the update, so the choice is made in the loops that compute it and takes no
    pass of its own; parameters that overflow all the same are found at the end
    of a chunk (``Metrics.lost``). A ``where``, no branch: a conditional under vmap
    runs both sides. Devices decide together, so that the replicas stay equal: one
    float32 more is averaged over them, as the gradients are, so that the compiler
    can send them together.

    Args:
      periodic: whether the target network is replaced, not moved by Polyak steps.

    Returns:
      The learner, and ``[]`` bool: whether the step was undone.
    """
    finite = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
    undone = collectives.mean((~finite).astype(jnp.float32)) > 0
    kept = jax.tree.map(lambda old, new: jnp.where(undone, old, new), before, after)
    if periodic:
        # From the parameters that are kept: the compiler may compute the update once more for a
        # target of its own, and round it otherwise.
        replaced = ~undone & (after.since_target == 0)
        target = jax.tree.map(
            lambda new, old: jnp.where(replaced, new, old), kept.params, before.target_params
        )
        kept = kept._replace(target_params=target)
    return kept, undone


def all_finite(tree: PyTree) -> Array:
    """Return ``[]`` bool: whether every floating-point element is finite.

    By the sum of the magnitudes: it is finite if they are (and of less than
    1e38 together), and the compiler makes one loop of it.
    """
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    sums = [jnp.sum(jnp.abs(leaf).astype(jnp.float32)) for leaf in jax.tree.leaves(pack(floats))]
    return jnp.isfinite(sum(sums, jnp.float32(0)))


def not_finite(tree: PyTree) -> list[str]:
    """Return, for each leaf that has any, its name and how many elements are not finite.

    On the host: it waits for the arrays. Hyper-parameters are left out, of which
    infinity means that they are not in use.
    """
    found = []
    unused = tree.hyper if isinstance(tree, TrainState) else ()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not any(leaf is each for each in unused):
            count = int(np.sum(~np.isfinite(np.asarray(leaf, np.float32))))
            if count:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                found.append(f"{name} ({count} of {leaf.size})")
    return found
