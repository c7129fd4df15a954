"""Measure what safety costs: ``python -m benchmarks.reliability``.

A checkpoint of a large replay: the time for which training is blocked against one
copy of the state in memory, the chunk after it against a chunk as usual (a copy of
the ring would show there), and how much slower chunks are while it is written. The
numerical guard: iterations with it against iterations without, and the operations
that it adds to the compiled step.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import OF_MEDIAN, compile_apart, compile_cold, median_interval, spread
from jaxdqn.cli.flags import parse, run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    gigabytes: float = 1.0
    """Size of the replay that is saved."""
    rounds: int = 7
    """Checkpoints, and alternations of the guard."""
    directory: str | None = None
    """Where to write the checkpoints, which are removed; by default the system's place."""
    quick: bool = False
    """A fiftieth of the size and three rounds: figures to look at, not to keep."""
    json: str | None = None
    """File to write the measurements to, such as benchmarks/results/safety.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.reliability", description=__doc__)
    if flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    if not 0 < flags.gigabytes < 1e3:
        raise ValueError(f"gigabytes={flags.gigabytes}: must be above 0 and below 1000")
    check_writable(flags.json)
    compile_cold()
    rounds, gigabytes = (
        (3, flags.gigabytes / 50) if flags.quick else (flags.rounds, flags.gigabytes)
    )
    report: dict[str, Any] = {"stamp": stamp()}
    print(describe(report["stamp"]))
    report["checkpoint"] = measure_checkpoints(gigabytes, rounds, flags.directory)
    report["guard"] = measure_guard(rounds, iterations=200 if flags.quick else 5_000)
    print(f"medians (least-greatest); of ratios the median and {OF_MEDIAN}")
    print(format_table(["measured", "value", "bar"], _rows(report)))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def measure_checkpoints(gigabytes: float, rounds: int, directory: str | None) -> dict[str, Any]:
    """Save a state of this size again and again between chunks of training."""
    import jax
    import jax.numpy as jnp

    from benchmarks import workloads
    from jaxdqn.config.config import replace
    from jaxdqn.replay import tree_bytes
    from jaxdqn.storage.checkpoint_manager import CheckpointManager
    from jaxdqn.storage.state import snapshot_key_data
    from jaxdqn.training import trainer as training

    # Breakout's rows take 64 bytes with their flags, actions, rewards and place among the starts.
    config = workloads.sized("Breakout-MinAtar", num_envs=64, batch_size=32)
    per_row = _bytes_per_row(config)
    capacity = int(gigabytes * 1e9 / per_row) // 64 * 64
    config = replace(config, replay_capacity=capacity, total_rows=10 * capacity)
    trainer = training.make_trainer(config)
    state = jax.block_until_ready(jax.jit(trainer.init)(jax.random.key(0)))
    chunk, _ = compile_apart(trainer.chunk(400), state, donate=(0,))
    snapshot, _ = compile_apart(snapshot_key_data, state)
    copy, _ = compile_apart(lambda state: jax.tree.map(jnp.copy, state), state)

    def timed(function: Any, *args: Any) -> tuple[float, Any]:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        return time.perf_counter() - start, result

    taken: dict[str, list[float]] = {
        name: [] for name in ("copy", "blocked", "write", "usual", "next", "while")
    }
    state, _ = chunk(state)
    jax.block_until_ready(state)
    moved = 0
    host = {"last": None, "judged": -1, "best": None}
    with tempfile.TemporaryDirectory(dir=directory) as place:
        checkpoints = CheckpointManager(
            Path(place), config, snapshot, jax.eval_shape(lambda: state)
        )
        for turn in range(rounds):
            seconds, copied = timed(copy, state)
            del copied
            taken["copy"].append(seconds)
            seconds, (state, _) = timed(chunk, state)
            taken["usual"].append(seconds)
            params = state.agent.params
            started = time.perf_counter()
            checkpoints.save(turn + 1, state, best=params, last=params, host=host)
            taken["blocked"].append(time.perf_counter() - started)
            during: list[float] = []
            del params
            place_before = _address(state)
            while not during or checkpoints.busy:
                seconds, (state, _) = timed(chunk, state)
                during.append(seconds)
                moved += _address(state) != place_before
            checkpoints.wait()
            taken["write"].append(time.perf_counter() - started)
            taken["next"].append(during[0])
            # The last chunk may outlast the writing.
            taken["while"].append(spread(during[:-1] or during).median)
    return {
        "state_bytes": tree_bytes(jax.eval_shape(lambda: state)),
        "replay_bytes": tree_bytes(jax.eval_shape(lambda: state.replay)),
        "rounds": rounds,
        "chunks_that_moved_the_ring": moved,
        "copy_seconds": spread(taken["copy"]),
        "blocked_seconds": spread(taken["blocked"]),
        "write_seconds": spread(taken["write"]),
        "chunk_seconds": spread(taken["usual"]),
        "blocked_over_copy": _ratio(taken["blocked"], taken["copy"]),
        "next_chunk_over_usual": _ratio(taken["next"], taken["usual"]),
        "chunk_while_writing_over_usual": _ratio(taken["while"], taken["usual"]),
    }


def measure_guard(rounds: int, iterations: int) -> dict[str, Any]:
    """Time iterations with and without the guard, and count the operations of both.

    In processes of one XLA thread each, as ``jaxdqn run`` chooses for the matched work.
    """
    import jax

    from benchmarks.processes import CPU_THREADS, Process
    from benchmarks.workloads import matched
    from jaxdqn.training import trainer as training

    operations = {}
    for name in ("off", "skip"):
        trainer = training.make_trainer(matched(guard=name))
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        text = jax.jit(trainer.step, donate_argnums=0).lower(state).compile().as_text()
        assert text is not None
        # Of the entry computation: each is a loop, a product or a copy of its own.
        entry = text[text.index("ENTRY ") :]
        operations[name] = len(re.findall(r" = .*? (?:fusion|dot|call|copy|while|reduce)\(", entry))
    processes = {name: Process.own(iterations, CPU_THREADS, name) for name in ("off", "skip")}
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    try:
        for process in processes.values():
            process.receive()
        for turn in range(max(rounds, 9)):
            for name in list(processes)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(processes[name].measure()["seconds"])
    finally:
        for process in processes.values():
            process.close()
    return {
        "iteration_seconds": {
            name: spread([value / iterations for value in values])
            for name, values in seconds.items()
        },
        "on_over_off": _ratio(seconds["skip"], seconds["off"]),
        "operations": operations,
    }


def _bytes_per_row(config: Any) -> float:
    import jax

    from jaxdqn import envs
    from jaxdqn.replay import tree_bytes
    from jaxdqn.training.dqn import make_replay
    from jaxdqn.training.trainer import example_row

    replay = make_replay(config)
    row = example_row(envs.make(config.env))
    return tree_bytes(jax.eval_shape(replay.init, row)) / config.replay_capacity


def _address(state: Any) -> int:
    """Return where the ring's observations are."""
    import jax

    return jax.tree.leaves(state.replay.storage.obs)[0].unsafe_buffer_pointer()


def _ratio(over: Sequence[float], under: Sequence[float]) -> Any:
    return median_interval([a / b for a, b in zip(over, under, strict=True)])


def _rows(report: dict[str, Any]) -> list[list[Any]]:
    saved, guarded = report["checkpoint"], report["guard"]
    extra = guarded["operations"]["skip"] - guarded["operations"]["off"]
    return [
        ["state, bytes", f"{saved['state_bytes']:,}", ""],
        ["one copy of it in memory, s", saved["copy_seconds"], ""],
        ["training blocked by a checkpoint, s", saved["blocked_seconds"], ""],
        ["  over one copy", saved["blocked_over_copy"], "<= 2"],
        ["until it is on the disk, s", saved["write_seconds"], ""],
        ["a chunk of 400 iterations, s", saved["chunk_seconds"], ""],
        ["chunks that moved the ring", str(saved["chunks_that_moved_the_ring"]), "0"],
        ["the chunk after a checkpoint over one before", saved["next_chunk_over_usual"], ""],
        [
            "a chunk while it is written over one before",
            saved["chunk_while_writing_over_usual"],
            "",
        ],
        ["an iteration with the guard over one without", guarded["on_over_off"], "<= 1.05"],
        ["operations the guard adds to a step", str(extra), ""],
    ]


if __name__ == "__main__":
    sys.exit(main())
