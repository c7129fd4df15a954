"""Repeated and resumed runs on the device, compared bit by bit."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.plan import Cell, Sizes, measured_by
from benchmarks.configs import BREAKOUT, CARTPOLE
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import preset
from jaxdqn.run import program_cache
from jaxdqn.run.runner import run
from jaxdqn.types import PyTree


def bitwise_cells(sizes: Sizes) -> list[Cell]:
    """Return cells for repeated runs and for a resumed run, with and without ``deterministic``."""
    cells = []
    for deterministic in (False, True):
        config = bitwise_config(sizes, deterministic)
        name = "deterministic" if deterministic else "default"
        cells.append(Cell(f"repeat, {name}", measured_by(compare_repeats, config)))
        cells.append(Cell(f"resume, {name}", measured_by(compare_resumed, config)))
    return cells


def bitwise_config(sizes: Sizes, deterministic: bool) -> Config:
    """Return a short run with prioritised replay, whose scatters are unordered on a GPU."""
    env = CARTPOLE if sizes.shrunk else BREAKOUT
    base = preset("dqn", env=env, replay="prioritized", deterministic=deterministic)
    per_add = base.num_envs
    iterations = 25 if sizes.shrunk else 250
    return replace(
        base,
        replay_capacity=64 * per_add,
        warmup_rows=16 * per_add,
        batch_size=32,
        chunk_iterations=iterations,
        total_rows=(16 + sizes.chunks * iterations) * per_add,
        eval_every=0,
        eval_episodes=2,
        checkpoint_every=10**9,
    )


def compare_repeats(config: Config) -> dict[str, Any]:
    """Run three times: twice with the same programs, and once with recompiled programs."""
    one, same = run(config).state, run(config).state
    program_cache.clear()
    again = run(config).state
    return {
        "same program": difference(one, same),
        "compiled again": difference(one, again),
        "bitwise": not difference(one, same) and not difference(one, again),
    }


def compare_resumed(config: Config) -> dict[str, Any]:
    """Run once without interruption, and once with a stop and a resume halfway."""
    whole = run(config).state
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        stopped = run(config, out=out, callbacks=_StopAfter(config.num_chunks // 2))
        if not stopped.summary["interrupted"]:
            raise RuntimeError("the run was not stopped halfway")
        resumed = run(config, out=out, resume=True).state
    found = difference(whole, resumed)
    return {"resumed": found, "bitwise": not found}


def difference(one: PyTree, other: PyTree) -> list[str]:
    """Return the paths of the leaves that are not bitwise identical, keys included."""
    paths = jax.tree_util.tree_flatten_with_path(one)[0]
    pairs = zip(paths, jax.tree.leaves(other), strict=True)
    return [
        jax.tree_util.keystr(path) for (path, a), b in pairs if _bytes(a) != _bytes(b)
    ]  # fmt: skip


def _bytes(leaf: Any) -> bytes:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


class _StopAfter:
    """Callback that stops a run by a signal, as a scheduler does."""

    def __init__(self, chunks: int) -> None:
        self._left = chunks

    def on_chunk(self, context: Any) -> None:
        """Send the signal after the last chunk."""
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(signal.SIGTERM)
