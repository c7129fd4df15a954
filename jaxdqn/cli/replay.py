"""Write the replay of a run to a file: ``jaxdqn replay RUN --to FILE.npz``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxdqn.cli.flags import parse, run_command
from jaxdqn.storage.directory import read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional]
    """Directory of the run; its newest checkpoint is read."""
    to: str
    """File to write, which must not exist: a NumPy .npz archive of the rows in the order of time.
    ``jaxdqn run --replay-from FILE`` starts from it."""
    learner: int | None = None
    """Which learner's replay, counted from 0; for a run of several (--num-seeds, --sweep)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn replay", description=__doc__)
    config, to = read_config(flags.run), Path(flags.to)
    if to.suffix != ".npz":
        raise ValueError(f"to={flags.to!r}: must end in .npz")
    if to.exists():
        raise ValueError(f"to={flags.to!r}: must not exist")
    if not to.parent.is_dir():
        raise ValueError(f"to={flags.to!r}: must be in a directory that exists")

    if config.recurrent != "none":
        raise ValueError(
            f"run={flags.run!r}: must be of a run without a recurrent network, whose rows have its "
            "carries besides"
        )
    if config.algorithm == "pqn":
        raise ValueError(f"run={flags.run!r}: must be of a run with a replay; pqn has none")
    _check_learner(flags.learner, config.learners)

    import jax

    from jaxdqn.replay.export import StoredRows, export_rows, write_rows
    from jaxdqn.storage.resume import read_state

    restored, spec = read_state(flags.run, config)
    if not restored.meta["replay"]:
        raise ValueError(
            f"run={flags.run!r}: must have its replay in its checkpoints (replay_in_checkpoint)"
        )
    replay = restored.state.replay
    if flags.learner is not None:
        replay = jax.tree.map(lambda leaf: leaf[flags.learner], replay)
    rows = export_rows(replay, devices=config.replicas)
    try:
        write_rows(to, StoredRows(rows, spec.name, spec.num_actions))
    except OSError as error:
        raise ValueError(f"to={flags.to!r}: must be writable: {error.strerror}") from error
    steps, envs = rows.first.shape
    whose = "" if flags.learner is None else f" of learner {flags.learner}"
    print(f"{steps:,} rows of each of {envs} environments of {spec.name}{whose} in {to}")


def _check_learner(learner: int | None, learners: int) -> None:
    if learners == 1:
        if learner is not None:
            raise ValueError(f"learner={learner}: must be left out, the run has one learner")
    elif learner is None or not 0 <= learner < learners:
        raise ValueError(
            f"learner={learner}: must be from 0 to {learners - 1}, the run has {learners} learners"
        )


if __name__ == "__main__":
    sys.exit(main())
