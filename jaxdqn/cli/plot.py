"""Draw learning curves: ``jaxdqn plot RUN [RUN ...] --out FILE.png``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxdqn.cli.flags import parse, run_command

_DESCRIPTION = """Draw the learning curves of runs into one picture: the return in training and in
evaluations, over environment steps and over wall-clock time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """Picture to write, in the format of its suffix: .png, .pdf, .svg and others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn plot", description=_DESCRIPTION)
    if not flags.runs:
        raise ValueError("runs=(): must be at least one run directory")
    from jaxdqn.monitoring.curves import plot_runs

    plot_runs(flags.runs, flags.out)
    print(f"curves in {flags.out}")


if __name__ == "__main__":
    sys.exit(main())
