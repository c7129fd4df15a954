"""Measure the cost of checkpoints and of the numerical guard: ``python -m benchmarks.reliability``.

Checkpoints of a large replay: the time for which training is blocked, relative to one copy of the
state in memory; the time of the chunk after a checkpoint, relative to a normal chunk, which would
reveal a copy of the ring; and the slowdown of chunks while a checkpoint is written. Guard: the time
of iterations with the guard, relative to iterations without it, and the number of operations that
the guard adds to the compiled step.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.configs import BREAKOUT, matched, sized
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, compile_cold, compile_timed, ratio, spread
from jaxdqn.cli.flags import parse, run_command

CHUNK = 400
"""Iterations of a chunk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    gigabytes: float = 1.0
    """Size of the replay that is saved."""
    rounds: int = 7
    """Number of checkpoints. With and without the guard at least nine rounds are measured."""
    directory: str | None = None
    """Directory for the checkpoints, which are removed; by default the temporary directory."""
    quick: bool = False
    """A fiftieth of the size and three rounds: a first look, not a measurement."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/safety.json."""


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
    print(f"{MEDIANS}; {RATIOS}")
    print(format_table(["measured", "value", "bar"], _rows(report)))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


class _Checkpointed(NamedTuple):
    """Compiled functions, and the state to checkpoint."""

    config: Any
    state: Any
    chunk: Any
    snapshot: Any
    copy: Any


def measure_checkpoints(gigabytes: float, rounds: int, directory: str | None) -> dict[str, Any]:
    """Save a state of this size repeatedly between chunks of training."""
    import jax

    from jaxdqn.replay import tree_bytes

    training = _prepare_checkpointed(gigabytes)
    shape = jax.eval_shape(lambda: training.state)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        seconds, moved = _save_repeatedly(training, rounds, Path(scratch))
    return {
        "state_bytes": tree_bytes(shape),
        "replay_bytes": tree_bytes(shape.replay),
        "rounds": rounds,
        "chunks_that_moved_the_ring": moved,
        "copy_seconds": spread(seconds["copy"]),
        "blocked_seconds": spread(seconds["blocked"]),
        "write_seconds": spread(seconds["write"]),
        "chunk_seconds": spread(seconds["usual"]),
        "blocked_over_copy": ratio(seconds["blocked"], seconds["copy"]),
        "next_chunk_over_usual": ratio(seconds["next"], seconds["usual"]),
        "chunk_while_writing_over_usual": ratio(seconds["while"], seconds["usual"]),
    }


def _prepare_checkpointed(gigabytes: float) -> _Checkpointed:
    """Compile training with a replay of this size."""
    import jax
    import jax.numpy as jnp

    from jaxdqn.config.config import replace
    from jaxdqn.storage.state import snapshot_key_data
    from jaxdqn.training import trainer as training

    # A row of Breakout takes 64 bytes, including flags, action, reward and its entry in the list
    # of starts.
    config = sized(BREAKOUT, num_envs=64, batch_size=32)
    capacity = int(gigabytes * 1e9 / _bytes_per_row(config)) // 64 * 64
    config = replace(config, replay_capacity=capacity, total_rows=10 * capacity)
    trainer = training.make_trainer(config)
    state = jax.block_until_ready(jax.jit(trainer.init)(jax.random.key(0)))
    chunk, _ = compile_timed(trainer.chunk(CHUNK), state, donate=(0,))
    snapshot, _ = compile_timed(snapshot_key_data, state)
    copy, _ = compile_timed(lambda state: jax.tree.map(jnp.copy, state), state)
    state, _ = jax.block_until_ready(chunk(state))
    return _Checkpointed(config, state, chunk, snapshot, copy)


def _save_repeatedly(
    training: _Checkpointed, rounds: int, directory: Path
) -> tuple[dict[str, list[float]], int]:
    """Train and save; return the seconds of each phase, and the number of chunks that moved the
    ring."""
    import jax

    from jaxdqn.storage.checkpoint_manager import CheckpointManager

    def timed(function: Any, *args: Any) -> tuple[float, Any]:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        return time.perf_counter() - start, result

    phases = ("copy", "blocked", "write", "usual", "next", "while")
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    state, moved = training.state, 0
    host = {"last": None, "judged": -1, "best": None}
    checkpoints = CheckpointManager(
        directory, training.config, training.snapshot, jax.eval_shape(lambda: state)
    )
    for index in range(rounds):
        duration, copied = timed(training.copy, state)
        del copied
        seconds["copy"].append(duration)
        duration, (state, _) = timed(training.chunk, state)
        seconds["usual"].append(duration)
        started = time.perf_counter()
        params = state.agent.params
        checkpoints.save(index + 1, state, best=params, last=params, host=host)
        seconds["blocked"].append(time.perf_counter() - started)
        del params
        during: list[float] = []
        address = _ring_address(state)
        while not during or checkpoints.busy:
            duration, (state, _) = timed(training.chunk, state)
            during.append(duration)
            moved += _ring_address(state) != address
        checkpoints.wait()
        seconds["write"].append(time.perf_counter() - started)
        seconds["next"].append(during[0])
        # The last chunk may end after the checkpoint is written.
        seconds["while"].append(spread(during[:-1] or during).median)
    return seconds, moved


def measure_guard(rounds: int, iterations: int) -> dict[str, Any]:
    """Time iterations with and without the guard, and count the operations of both steps.

    Each case runs in a process with one XLA thread, which ``jaxdqn run`` chooses for this workload.
    """
    from benchmarks.processes import CPU_THREADS, Process, alternate_processes

    guards = ("off", "skip")
    operations = {guard: _count_operations(matched(guard=guard)) for guard in guards}
    answers = alternate_processes(
        {guard: Process.jaxdqn(iterations, CPU_THREADS, guard) for guard in guards},
        rounds=max(rounds, 9),
    )
    seconds = {guard: [each["seconds"] for each in answers[guard]] for guard in guards}
    return {
        "iteration_seconds": {
            name: spread([value / iterations for value in values])
            for name, values in seconds.items()
        },
        "on_over_off": ratio(seconds["skip"], seconds["off"]),
        "operations": operations,
    }


def _count_operations(config: Any) -> int:
    """Count the operations in the entry computation of the compiled step.

    Each operation is a loop, a product or a copy that XLA executes separately.
    """
    import jax

    from jaxdqn.training import trainer as training

    trainer = training.make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    text = jax.jit(trainer.step, donate_argnums=0).lower(state).compile().as_text()
    assert text is not None
    entry = text[text.index("ENTRY ") :]
    return len(re.findall(r" = .*? (?:fusion|dot|call|copy|while|reduce)\(", entry))


def _bytes_per_row(config: Any) -> float:
    import jax

    from jaxdqn import envs
    from jaxdqn.replay import tree_bytes
    from jaxdqn.training.dqn import make_replay
    from jaxdqn.training.learner import example_row

    replay = make_replay(config)
    row = example_row(envs.configured_environment(config).spec)
    return tree_bytes(jax.eval_shape(replay.init, row)) / config.replay_capacity


def _ring_address(state: Any) -> int:
    """Return the memory address of the ring's observations."""
    import jax

    return jax.tree.leaves(state.replay.storage.obs)[0].unsafe_buffer_pointer()


def _rows(report: dict[str, Any]) -> list[list[Any]]:
    saved, guarded = report["checkpoint"], report["guard"]
    extra = guarded["operations"]["skip"] - guarded["operations"]["off"]
    return [
        ["state, bytes", f"{saved['state_bytes']:,}", ""],
        ["one copy of the state in memory, s", saved["copy_seconds"], ""],
        ["training blocked by a checkpoint, s", saved["blocked_seconds"], ""],
        ["  relative to one copy", saved["blocked_over_copy"], "<= 2"],
        ["until the checkpoint is on disk, s", saved["write_seconds"], ""],
        [f"a chunk of {CHUNK} iterations, s", saved["chunk_seconds"], ""],
        ["chunks that moved the ring", str(saved["chunks_that_moved_the_ring"]), "0"],
        ["chunk after a checkpoint / chunk before", saved["next_chunk_over_usual"], ""],
        [
            "chunk during the write / chunk before",
            saved["chunk_while_writing_over_usual"],
            "",
        ],
        ["iteration with the guard / without", guarded["on_over_off"], "<= 1.05"],
        ["operations that the guard adds to a step", str(extra), ""],
    ]


if __name__ == "__main__":
    sys.exit(main())
