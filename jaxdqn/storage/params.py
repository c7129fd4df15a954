"""Save and restore parameters with Orbax."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxdqn.types import Params

PARAMETERS = ("best", "last")


_LOCK = threading.Lock()


@contextmanager
def orbax_checkpointer() -> Iterator[Any]:
    """Open an orbax checkpointer that does not synchronise with other processes.

    The checkpointers of a process share a context that is not thread-safe, so only one thread uses
    orbax at a time.
    """
    import jax
    import orbax.checkpoint as ocp  # slow to import

    options = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="alone",
    )
    if jax.process_count() == 1:
        options = ocp.options.MultiprocessingOptions()
    with _LOCK, ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
        yield checkpointer


def save_params(path: Path, params: Params) -> None:
    """Write parameters, replacing older ones, and return once they are complete."""
    older = path.with_name(f".{path.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with orbax_checkpointer() as checkpointer:
        checkpointer.save(unfinished.resolve(), params)
        checkpointer.wait_until_finished()
    if path.exists():
        path.rename(older)
    unfinished.rename(path)
    shutil.rmtree(older, ignore_errors=True)


def restore_params(path: Path, target: Params) -> Params:
    """Read parameters onto the default device.

    Args:
        path: directory written by ``save_params``.
        target: shapes and dtypes, for example from ``jax.eval_shape``.

    Raises:
        ValueError: if the parameters are missing, or have a different structure or shape.
    """
    import jax

    if not path.is_dir():
        raise ValueError(f"run={str(path.parent)!r}: must hold the parameters {path.name}/")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), target
    )
    with orbax_checkpointer() as checkpointer:
        return checkpointer.restore(path.resolve(), target)
