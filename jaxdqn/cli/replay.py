"""Write the replay of a run to a file: ``jaxdqn replay RUN --to FILE.npz``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxdqn.cli.backend import start_backend
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.cli.parts import RunParts, references
from jaxdqn.config.config import Config
from jaxdqn.storage.directory import read_config

_DESCRIPTION = """Write the replay in the newest checkpoint of a run to a file. jaxdqn run
--replay-from FILE starts a run with these rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    to: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """File to write: a NumPy .npz archive of the rows, oldest first. It must not exist."""
    learner: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Index of the learner, from 0; only for a run of several learners (--num-seeds, --sweep)."""
    parts: tyro.conf.OmitArgPrefixes[RunParts] = dataclasses.field(default_factory=RunParts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn replay", description=_DESCRIPTION)
    own = references(flags.parts)
    config, to = read_config(flags.run), Path(flags.to)
    _check_file(to)
    _check_run(flags.run, config)
    _check_learner(flags.learner, config.learners)

    import jax

    from jaxdqn.replay.export import StoredRows, export_rows, write_rows
    from jaxdqn.storage.parts import read_parts, resolve_parts
    from jaxdqn.storage.resume import read_state

    start_backend()
    recorded = read_parts(flags.run)
    for name in ("replay", "learning"):
        if name in recorded:
            raise ValueError(f"run={flags.run!r}: must have a built-in {name} to export its rows")
    parts = resolve_parts(own, recorded, run=flags.run)
    restored, spec = read_state(flags.run, config, **parts.objects)
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
    learner = "" if flags.learner is None else f" of learner {flags.learner}"
    print(f"{steps:,} rows of each of {envs} environments of {spec.name}{learner} in {to}")


def _check_file(to: Path) -> None:
    if to.suffix != ".npz":
        raise ValueError(f"to={str(to)!r}: must end in .npz")
    if to.exists():
        raise ValueError(f"to={str(to)!r}: must not exist")
    if not to.parent.is_dir():
        raise ValueError(f"to={str(to)!r}: must be in a directory that exists")


def _check_run(run: str, config: Config) -> None:
    if config.algorithm == "pqn":
        raise ValueError(f"run={run!r}: must be a run with a replay; pqn has none")


def _check_learner(learner: int | None, learners: int) -> None:
    if learners == 1:
        if learner is not None:
            raise ValueError(f"learner={learner}: must be omitted; the run has one learner")
    elif learner is None or not 0 <= learner < learners:
        raise ValueError(
            f"learner={learner}: must be from 0 to {learners - 1}; the run has {learners} learners"
        )


if __name__ == "__main__":
    sys.exit(main())
