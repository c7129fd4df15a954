"""Help of ``jaxdqn run``."""

from __future__ import annotations

from collections.abc import Sequence

from jaxdqn.cli.flags import terminal_columns
from jaxdqn.cli.help import help_text, requested_help
from jaxdqn.cli.run_flags import Flags
from jaxdqn.config.algorithm_presets import ALGORITHMS
from jaxdqn.config.task_presets import TASKS

_SUMMARY = (
    "Train a DQN agent. PRESET comes first and sets the defaults of the flags, as in "
    "`jaxdqn run rainbow --env Breakout-MinAtar --seed 3`."
)
_NOTES: dict[str, dict[str, str] | str] = {
    "Presets": {
        "tasks": ", ".join(TASKS),
        "MinAtar": "sticky_actions 0.1 and all six actions; --protocol gymnax for the games as "
        "gymnax makes them",
        "algorithms": f"{', '.join(ALGORITHMS)}; with the settings of the task that --env names",
    },
    "Run directory": "config.json, metrics.jsonl, evaluations.jsonl, events.jsonl, summary.json, "
    "curve.png, checkpoints/ and the parameters best/ and last/. Ctrl-C, SIGTERM, SIGHUP "
    "or SIGUSR1 ends the run after the chunk, or the part of a long one, with all files written; "
    "--resume continues it.",
}


def print_requested_help(argv: Sequence[str], defaults: Flags) -> None:
    """Print the help and exit, if the arguments ask for it."""
    kind = requested_help(argv)
    if kind is None:
        return
    print(
        help_text(
            defaults,
            usage="jaxdqn run [PRESET] [flags]",
            summary=_SUMMARY,
            notes=_NOTES,
            complete=kind == "complete",
            columns=terminal_columns(),
        )
    )
    raise SystemExit(0)
