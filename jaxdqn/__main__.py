"""Command line: ``jaxdqn COMMAND``, or ``python -m jaxdqn COMMAND``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand."""

    module: str
    """Module with a function ``main(argv) -> exit code``."""
    summary: str


COMMANDS = {
    "run": Command("jaxdqn.cli.run", "train, or resume a run"),
    "evaluate": Command("jaxdqn.cli.evaluate", "evaluate a run, and draw an episode"),
    "plot": Command("jaxdqn.cli.plot", "draw learning curves of runs"),
    "watch": Command("jaxdqn.cli.watch", "follow a run in another process"),
    "report": Command("jaxdqn.cli.report", "write an HTML page about runs"),
    "explain": Command("jaxdqn.cli.explain", "print a run's shapes, bytes and schedules"),
    "export": Command("jaxdqn.cli.export", "write the policy of a run, to use without jaxdqn"),
    "replay": Command("jaxdqn.cli.replay", "write the replay of a run to a file"),
    "study": Command("jaxdqn.cli.study.__main__", "train presets on environments over seeds"),
    "compare": Command("jaxdqn.cli.compare", "measure the speed-up of each technique"),
}

_USAGE_ERROR = 2


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxdqn COMMAND [arguments]",
            "",
            "Train deep Q-networks in JAX.",
            "",
            "Commands:",
            *lines,
            "",
            "jaxdqn COMMAND --help describes a command; jaxdqn --version prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return _USAGE_ERROR
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from jaxdqn import __version__

        print(f"jaxdqn {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        return _USAGE_ERROR
    try:
        return import_module(COMMANDS[name].module).main(rest)
    except KeyboardInterrupt:  # during the import; commands handle later interrupts themselves
        print("interrupted", file=sys.stderr)
        return 130


def _unknown(name: str) -> str:
    from jaxdqn.config.presets import PRESETS

    if name in PRESETS:
        return f"{name}: a preset, not a command; to train it: jaxdqn run {name}"
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if near:
        return f"{name}: no such command; nearest: {near[0]}"
    return f"{name}: no such command; jaxdqn --help lists them"


if __name__ == "__main__":
    sys.exit(main())
