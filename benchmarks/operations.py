"""Count the operations of each preset's traced chunk: ``python -m benchmarks.operations``.

XLA has to compile the operations that JAX traces. The count is exact, needs no accelerator, and
does not depend on the machine, so a test compares it with a recorded count.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

from jaxdqn.cli.flags import parse, run_command

ITERATIONS = 11
"""Number of iterations of the chunk; it does not affect the count."""

_OPERATION = re.compile(r"^\s+(?:%\S+ = )?\"?(?:stablehlo|chlo)\.([a-z_]+)", re.M)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Presets; by default those of ``python -m benchmarks.gpu_program`` on one device."""
    json: str | None = None
    """File for the counts, such as benchmarks/results/operations.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.operations", description=__doc__)
    from benchmarks.gpu_program.cases import selected
    from benchmarks.report import check_writable, format_table, stamp, write_json

    cases = [case for case in selected(flags.only) if case.config().learners == case.devices == 1]
    check_writable(flags.json)
    counts, rows = {}, []
    for case in cases:
        started = time.perf_counter()
        counts[case.name] = count_operations(case.config())
        rows.append([case.name, counts[case.name], time.perf_counter() - started])
    print(format_table(["program", "operations", "trace s"], rows))
    if flags.json is not None:
        write_json(flags.json, {"versions": stamp()["versions"], "operations": counts})


def count_operations(config: Any) -> int:
    """Return the number of operations of a chunk lowered for the CPU; functions count once."""
    import jax

    from jaxdqn.training.trainer import make_trainer

    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    lowered = jax.jit(trainer.chunk(ITERATIONS)).trace(state).lower(lowering_platforms=("cpu",))
    return len(_OPERATION.findall(lowered.as_text()))


if __name__ == "__main__":
    raise SystemExit(main())
