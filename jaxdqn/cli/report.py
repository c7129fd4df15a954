"""Write a report of runs: ``jaxdqn report RUN [RUN ...] --out FILE.html``."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Annotated

import tyro

from jaxdqn.cli.flags import parse, run_command

_DESCRIPTION = """Write one page of HTML about runs: curves, results, an episode of the policy,
configuration, throughput, and how to reproduce them. The page needs no other file and no network,
and can be printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = "report.html"
    """Page to write."""
    video: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .gif or .mp4 of the policy to show, as evaluate --video draws it."""
    draw: bool = True
    """Without --video, draw an episode of the best run, if its environment can be drawn."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn report", description=_DESCRIPTION)
    _check(flags)
    from jaxdqn.monitoring.report import report_html
    from jaxdqn.monitoring.run_files import read_run

    files = [read_run(run) for run in flags.runs]
    with tempfile.TemporaryDirectory() as directory:
        episode, note = None, ""
        if flags.video is not None:
            episode = Path(flags.video)
        elif flags.draw:
            finished = [run for run in files if run.summary is not None]
            if finished:
                best = max(finished, key=lambda run: _best_return(run.summary or {}))
                episode, note = _drawn(best.path, Path(directory) / "episode.gif")
        html = report_html(flags.runs, episode, note)
    try:
        Path(flags.out).write_text(html, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"out={flags.out!r}: must be writable: {error.strerror}") from error
    print(f"report in {flags.out}")


def _check(flags: Flags) -> None:
    if not flags.runs:
        raise ValueError("runs=(): must be at least one run directory")
    if Path(flags.out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out={flags.out!r}: must end in .html")
    if not Path(flags.out).parent.is_dir():
        raise ValueError(f"out={flags.out!r}: must be in a directory that exists")
    if flags.video is not None:
        suffix = Path(flags.video).suffix.lower()
        if suffix not in (".gif", ".mp4") or not os.path.isfile(flags.video):
            raise ValueError(f"video={flags.video!r}: must be a .gif or .mp4 file that exists")


def _best_return(summary: dict[str, float | None]) -> float:
    value = summary["best_eval_return_mean"]
    return float("-inf") if value is None else value


def _drawn(run: Path, file: Path) -> tuple[Path | None, str]:
    """Draw an episode; return its file, or the reason why there is none as HTML."""
    from jaxdqn.cli.evaluate import draw_episode

    try:
        draw_episode(run, file)
    except (ValueError, ImportError) as error:
        return None, f"<p class='note'>No episode was drawn: {escape(str(error))}</p>"
    return file, ""


if __name__ == "__main__":
    sys.exit(main())
