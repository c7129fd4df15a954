"""Initialise a run with those parameters of another run whose names and shapes match."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.communication.outer import OuterState
from jaxdqn.networks.spectral import POWER_VECTOR
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.params import orbax_checkpointer
from jaxdqn.storage.restore import newest_intact
from jaxdqn.types import AgentState, Params, TrainState, trained_params


class Transfer(NamedTuple):
    """Parameters to start from."""

    source: str
    taken: dict[str, np.ndarray]
    """Parameters of one learner by name."""
    new: dict[str, str]
    """Parameters that keep their random initialisation: name to reason."""

    @property
    def message(self) -> str:
        """Describe the copied and the remaining parameters as text."""
        text = f"starts from {self.source}: took {', '.join(self.taken)}"
        if not self.new:
            return text
        reasons = ", ".join(f"{name} ({reason})" for name, reason in self.new.items())
        return f"{text}; new are {reasons}"


def read_transfer(source: str, target: Params) -> Transfer:
    """Read those parameters of a run whose names and shapes match those of a network.

    Args:
        source: directory of the run. Its best parameters are read; if the run has not ended, those
            of its newest intact checkpoint.
        target: shapes of one learner's parameters.

    Raises:
        ValueError: if ``source`` is not a run with parameters, or none of the parameters match.
    """
    stored = _read(source)
    taken, new = {}, {}
    for name, leaf in _named(target).items():
        found = stored.get(name)
        if found is None:
            new[name] = "not in that run"
        elif (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            new[name] = f"{found.dtype}{list(found.shape)} there, {leaf.dtype}{list(leaf.shape)}"
        else:
            taken[name] = found
    for name in [name for name in new if name.endswith(f"/{POWER_VECTOR}")]:
        kernel = taken.get(name.removesuffix(POWER_VECTOR) + "kernel")
        if kernel is not None:  # the vector of the random kernel would give a wrong norm
            taken[name] = _leading_vector(kernel)
            del new[name]
    if not taken:
        raise ValueError(
            f"init_from={source!r}: must have parameters with the names and shapes of this run's "
            f"network: {', '.join(f'{name} ({reason})' for name, reason in new.items())}"
        )
    return Transfer(source, taken, new)


def transferred(state: TrainState, transfer: Transfer) -> TrainState:
    """Return a state whose online and target networks contain the transferred parameters.

    Args:
        state: new state. Its leaves may have a leading axis [D] or [P], along which the parameters
            are repeated.
        transfer: transfer for this network.
    """
    agent: AgentState = state.agent
    params = _replaced(agent.params, transfer)
    target = agent.target_params
    if not isinstance(target, tuple) or jax.tree.leaves(target):
        target = _replaced(target, transfer)

    def anchored(node: Any) -> Any:
        """Let an outer optimiser step from the transferred parameters."""
        if not isinstance(node, OuterState):
            return node
        return node._replace(anchor=jax.tree.map(jnp.copy, trained_params(params)))

    opt_state = jax.tree.map(
        anchored, agent.opt_state, is_leaf=lambda node: isinstance(node, OuterState)
    )
    agent = agent._replace(params=params, target_params=target, opt_state=opt_state)
    return state._replace(agent=agent)


def _leading_vector(kernel: np.ndarray) -> np.ndarray:
    """Return the leading right singular vector [F] of a kernel [..., F]."""
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    return np.linalg.svd(matrix, full_matrices=False)[2][0].astype(kernel.dtype)


def _replaced(params: Params, transfer: Transfer) -> Params:
    def replace(path: Any, leaf: Any) -> Any:
        value = transfer.taken.get(_name(path))
        if value is None:
            return leaf
        whole = np.array(np.broadcast_to(value, leaf.shape))
        placed = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: whole[part])
        return jnp.copy(placed)  # it may share NumPy memory on CPU, and is donated later

    return jax.tree_util.tree_map_with_path(replace, params)


def _read(source: str) -> dict[str, np.ndarray]:
    if not run_directory.is_run(source):
        raise ValueError(f"init_from={source!r}: must be a run directory")
    directory = Path(source)
    if not (directory / run_directory.SUMMARY).exists() or not (directory / "best").is_dir():
        directory = newest_intact(directory) or directory
    if not (directory / "best").is_dir():
        raise ValueError(f"init_from={source!r}: must hold the parameters best/ or a checkpoint")
    with orbax_checkpointer() as checkpointer:
        restored: Any = checkpointer.restore((directory / "best").resolve())
    return {name: np.asarray(leaf) for name, leaf in _named(restored).items()}


def _named(params: Params) -> dict[str, Any]:
    """Return the leaves by name; a structure and its plain dict give the same names."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
