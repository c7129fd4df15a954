"""Follow a run of another process: ``jaxdqn watch RUN``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxdqn.cli.flags import parse, run_command
from jaxdqn.config.config import Config

_DESCRIPTION = """Show the progress of a run in another process until it ends: on a terminal in the
same form as the run itself, otherwise as lines. Ctrl-C ends the display, not the run."""

_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    once: bool = False
    """Print the newest metrics and the newest evaluation, and exit."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn watch", description=_DESCRIPTION)
    from jaxdqn.monitoring.follow import is_running, other_host
    from jaxdqn.storage.directory import read_config

    config = read_config(flags.run)
    if flags.once:
        _print_newest(flags.run, config)
    else:
        _follow(flags.run, config)
    if is_running(flags.run):
        print("running")
    elif (host := other_host(flags.run)) is not None:
        print(f"not finished: started on {host}; from here it cannot be told whether it is running")
    else:
        print(_end(Path(flags.run)))


def _print_newest(run: str, config: Config) -> None:
    """Print the newest records of a run as lines."""
    from jaxdqn.monitoring.follow import RecordReader
    from jaxdqn.monitoring.terminal import evaluation_line, progress_items

    newest = dict(RecordReader(run).records())
    if "metrics" in newest:
        items = progress_items(config, newest["metrics"])
        print(" | ".join(f"{name} {value}" for name, value in items))
    else:
        print("no chunk is finished yet")
    if "evaluation" in newest:
        print(evaluation_line(newest["evaluation"]))


def _follow(run: str, config: Config) -> None:
    """Show the records of a run until no process runs it.

    A run on another machine is followed until it has a summary.
    """
    from jaxdqn.config.config import to_dict
    from jaxdqn.monitoring.follow import RecordReader, is_running, other_host
    from jaxdqn.monitoring.terminal import make_progress_logger

    reader, logger = RecordReader(run), make_progress_logger(config)
    logger.log("start", {"config": to_dict(config), "out": run})
    if not is_running(run) and (host := other_host(run)) is not None:
        print(f"started on {host}: following until its summary is written, whether or not its "
              "process lives; Ctrl-C ends the display")  # fmt: skip
    try:
        running = True
        while running:
            # Check before reading the files, so that everything written before the end is shown.
            running = is_running(run) or other_host(run) is not None
            for kind, record in reader.records():
                logger.log(kind, record)
            if running:
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        logger.close()


def _end(run: Path) -> str:
    """Return the outcome of a run that no process runs."""
    from jaxdqn.cli.outcome import outcome
    from jaxdqn.storage.directory import SUMMARY

    file = run / SUMMARY
    if not file.exists():
        return "stopped before its end: --resume continues it"
    return outcome(json.loads(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
