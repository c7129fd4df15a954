"""The command line: ``jaxdqn COMMAND``, or ``python -m jaxdqn COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "run": ("jaxdqn.cli.run", "train, or resume a run"),
    "evaluate": ("jaxdqn.cli.evaluate", "evaluate a run over fresh episodes, and draw one"),
    "plot": ("jaxdqn.cli.plot", "draw learning curves of runs"),
    "explain": ("jaxdqn.cli.explain", "print shapes, bytes and schedules of a run; train nothing"),
    "replay": ("jaxdqn.cli.replay", "write the replay of a run to a file"),
    "study": ("jaxdqn.cli.study.__main__", "train presets on environments over several seeds"),
    "compare": ("jaxdqn.cli.compare", "measure the speed-up of each acceleration technique"),
}
"""Module and summary of each command."""


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxdqn COMMAND [arguments]",
            "",
            "Train deep Q-networks in JAX.",
            "",
            "commands:",
            *lines,
            "",
            "jaxdqn COMMAND --help describes a command.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from jaxdqn import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        from jaxdqn.errors import suggest

        nearest = suggest(name, list(COMMANDS))
        print(f"error: {name!r}: no such command; nearest: {nearest}", file=sys.stderr)
        return 2
    return import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
