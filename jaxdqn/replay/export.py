"""Export the rows of a replay to a file, for analysis or to start another run.

The file is an ``.npz`` archive with the rows of E environments, oldest first. Its arrays are those
of ``jaxdqn.types.Row``: ``obs`` [T, E, O]; ``first``, ``action``, ``reward``, ``terminated`` and
``truncated`` [T, E]; and ``legal`` [T, E, A] if the environment masks actions. A row whose
successor opens an episode holds the final observation of its episode; its action, reward and end
flags are invalid. ``meta`` is JSON text with the version of the format, the name of the environment
and its number of actions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.losses import is_masked
from jaxdqn.replay.ring import in_order
from jaxdqn.types import EnvSpec, PyTree, Row

FORMAT = 1
_FIELDS = ("obs", "first", "action", "reward", "terminated", "truncated")


class StoredRows(NamedTuple):
    """Content of a row file."""

    rows: Row
    """NumPy leaves [T, E, ...]"""
    env: str
    num_actions: int


def export_rows(replay_state: PyTree, *, devices: int) -> Row:
    """Return the rows of a replay, oldest first, NumPy leaves [T, E, ...].

    Args:
        replay_state: state of the replay; with several devices each leaf has a leading axis [D].
            The result numbers the environments consecutively, device by device.
        devices: D, number of devices.
    """

    def of_device(device: int) -> Row:
        state = replay_state
        if devices > 1:
            state = jax.tree.map(lambda leaf: leaf[device], replay_state)
        return jax.device_get(in_order(jax.tree.map(jnp.asarray, state.ring)))

    parts = [of_device(device) for device in range(devices)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def write_rows(file: str | os.PathLike[str], stored: StoredRows) -> None:
    """Write rows to a file atomically: a reader never sees an incomplete file.

    Raises:
        ValueError: if the rows have extras, which the format does not support.
        OSError: if the file cannot be written.
    """
    if jax.tree.leaves(stored.rows.extras):
        raise ValueError("extras: must be empty; the file format cannot store them")
    meta = {"format": FORMAT, "env": stored.env, "num_actions": stored.num_actions}
    arrays = {name: getattr(stored.rows, name) for name in _FIELDS}
    if is_masked(stored.rows.legal):
        arrays["legal"] = stored.rows.legal
    unfinished = Path(f"{file}.unfinished")
    try:
        with open(unfinished, "wb") as opened:
            np.savez_compressed(opened, meta=np.array(json.dumps(meta)), **arrays)
        os.replace(unfinished, file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def read_rows(file: str | os.PathLike[str]) -> StoredRows:
    """Read a file of rows, without executing any code from it.

    Raises:
        ValueError: if the file cannot be read, or is not a valid file of rows in this format.
    """
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            rows = Row(*(arrays[name] for name in _FIELDS))
            if "legal" in arrays:
                rows = rows._replace(legal=arrays["legal"])
            version, stored = meta["format"], StoredRows(rows, meta["env"], meta["num_actions"])
    except OSError as error:
        raise ValueError(f"replay_from={str(file)!r}: must be readable: {error}") from error
    except Exception as error:  # arbitrary bytes: errors of zip, zlib, NumPy headers or JSON
        raise ValueError(
            f"replay_from={str(file)!r}: must be a file that jaxdqn replay wrote: {error}"
        ) from error
    if version != FORMAT:
        raise ValueError(f"replay_from={str(file)!r}: must be of format {FORMAT}, not {version}")
    _check_rows(stored, str(file))
    return stored


def _check_rows(stored: StoredRows, file: str) -> None:
    """Reject arrays that are not rows: wrong shapes or dtypes, or actions out of range."""
    shape = stored.rows.first.shape
    dtypes = {"first": bool, "action": np.int32, "reward": np.float32}
    dtypes |= {"terminated": bool, "truncated": bool}
    for name in _FIELDS:
        leaf = getattr(stored.rows, name)
        if leaf.shape[:2] != shape or (name in dtypes and leaf.ndim != 2):
            raise ValueError(f"replay_from={file!r}: {name} must have axes {list(shape)}")
        if name in dtypes and leaf.dtype != dtypes[name]:
            raise ValueError(f"replay_from={file!r}: {name} must be {np.dtype(dtypes[name])}")
    legal, wanted = stored.rows.legal, (*shape, stored.num_actions)
    if is_masked(legal) and (legal.shape != wanted or legal.dtype != bool):
        raise ValueError(f"replay_from={file!r}: legal must be bool{list(wanted)}")
    action = stored.rows.action
    if action.size and not (action.min() >= 0 and action.max() < stored.num_actions):
        raise ValueError(f"replay_from={file!r}: action must be from 0 to {stored.num_actions - 1}")


def fold_rows(stored: StoredRows, config: Config, spec: EnvSpec) -> Row:
    """Return the rows of a file in the layout of a run.

    The streams of the environments in the file are concatenated; ``first`` is set in the first row
    of each stream. The last rows of the concatenation, as many as fit into the replay together
    with the warm-up, are then divided into E streams of equal length.

    Returns:
        NumPy leaves [I, K, E, ...], E over all devices.

    Raises:
        ValueError: if the observations or actions do not fit the run, or the rows are too few.
    """
    rows, expected = stored.rows, (spec.obs_shape, np.dtype(spec.obs_dtype))
    actual = (rows.obs.shape[2:], rows.obs.dtype)
    if actual != expected:
        raise ValueError(f"replay_from: its observations are {actual}, must be {expected}")
    if stored.num_actions != spec.num_actions:
        raise ValueError(
            f"replay_from: it has {stored.num_actions} actions, must be {spec.num_actions}"
        )
    if is_masked(rows.legal) != spec.masked:
        found, wanted = ("has no", "masks") if spec.masked else ("has", "does not mask")
        raise ValueError(
            f"replay_from: it {found} masks of legal actions, and the environment {wanted} actions"
        )

    def streams(leaf: np.ndarray) -> np.ndarray:
        swapped = np.swapaxes(leaf, 0, 1)
        return swapped.reshape(-1, *swapped.shape[2:])

    first = rows.first.copy()
    first[0] = True  # each stream opens an episode, because no rows precede it
    flat: Any = jax.tree.map(streams, rows._replace(first=first))
    capacity = config.replay_rows - config.warmup_iterations * config.rollout_length
    length = min(flat.first.shape[0] // config.num_envs, capacity)
    length = length // config.rollout_length * config.rollout_length
    if length < 1:
        raise ValueError(
            f"replay_from: its {flat.first.shape[0]} rows are too few for num_envs="
            f"{config.num_envs} and rollout_length={config.rollout_length}, or warmup_rows="
            f"{config.warmup_rows} leaves no room for them in replay_capacity"
        )

    def fold(leaf: np.ndarray) -> np.ndarray:
        newest = leaf[leaf.shape[0] - length * config.num_envs :]
        by_env = newest.reshape(config.num_envs, length, *leaf.shape[1:])
        by_time = np.swapaxes(by_env, 0, 1)
        return by_time.reshape(-1, config.rollout_length, *by_time.shape[1:])

    folded = jax.tree.map(fold, flat)
    folded.first[0, 0] = True  # the division may have cut a stream in the middle of an episode
    return folded
