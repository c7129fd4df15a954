"""Draw learning curves: ``jaxdqn plot RUN [RUN ...] --out FILE.png``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxdqn.cli.flags import parse, run_command
from jaxdqn.lazy_modules import import_matplotlib

_DESCRIPTION = """Draw learning curves in one figure, over environment steps and wall-clock time.
A single run with one learner: the return in training and in evaluations. Otherwise one curve per
configuration: the interquartile mean of the greedy evaluations over its seeds (runs or learners),
with a 95 % bootstrap interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = "curves.png"
    """Output file; the suffix selects the format: .png, .pdf, .svg and others."""
    x: Literal["env_steps", "seconds"] | None = None
    """x axis; by default, one panel for each of the two."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn plot", description=_DESCRIPTION)
    if not flags.runs:
        raise ValueError("runs=(): must contain at least one run directory")
    _check_suffix(flags.out)
    from jaxdqn.monitoring.curves import plot_groups, plot_runs
    from jaxdqn.monitoring.groups import groups_of
    from jaxdqn.storage.directory import read_config

    if len(flags.runs) == 1 and read_config(flags.runs[0]).learners == 1:
        plot_runs(flags.runs, flags.out, axis=flags.x)
    else:
        plot_groups(groups_of(flags.runs), flags.out, axis=flags.x)
    print(f"curves in {flags.out}")


def _check_suffix(out: str) -> None:
    """Check that ``out`` has a suffix of a format that matplotlib can write."""
    import_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    if Path(out).suffix.lower().removeprefix(".") not in FigureCanvasBase.filetypes:
        known = ", ".join(f".{suffix}" for suffix in sorted(FigureCanvasBase.filetypes))
        raise ValueError(f"out={out!r}: must end in one of {known}")


if __name__ == "__main__":
    sys.exit(main())
