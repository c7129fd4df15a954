"""Measure each acceleration technique: ``jaxdqn compare``.

The measurements are part of the benchmarks, which the installed package does not contain.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from jaxdqn.cli.flags import run_command

_BENCHMARK = "benchmarks.techniques.__main__"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    try:
        benchmark = import_module(_BENCHMARK)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "benchmarks":
            raise
        raise ValueError(
            "compare: must be run in a checkout of the repository, since it uses the benchmarks, "
            "which the installed package does not contain: python -m experiments.compare"
        ) from None
    return benchmark.main(argv)


if __name__ == "__main__":
    sys.exit(main())
