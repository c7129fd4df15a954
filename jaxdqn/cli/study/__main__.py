"""Train presets on environments with several seeds each: ``jaxdqn study``.

Results go to one file, and what is there is not run again. The report follows the protocol of
rliable (Agarwal et al. 2021): interquartile means with stratified bootstrap intervals.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxdqn.cli.aliases import current_settings
from jaxdqn.cli.backend import is_small, keep_compiled_programs, use_cpu_threads
from jaxdqn.cli.flags import FAILED, parse, run_command
from jaxdqn.cli.study.cells import make_cell
from jaxdqn.cli.study.jobs import Study, complain, jobs_of, run_jobs
from jaxdqn.cli.study.results import REPORT, RESULTS, done_seeds, read_results, repair
from jaxdqn.cli.study.settings import PLACE, read_settings, seeds_text
from jaxdqn.config.presets import ALGORITHMS, TASKS, preset
from jaxdqn.storage.directory import lock, unwritable
from jaxdqn.storage.jsonl import Record

_DESCRIPTION = """Train presets on environments, with several seeds of each pair (a cell) in one
program on the device, and report interquartile means over seeds. Results are appended to
OUT/results.jsonl when a run of seeds ends; the same command, or one with more presets,
environments or seeds, runs what is not there yet. Ctrl-C, SIGTERM or --max-seconds ends the study
with everything written; the same command goes on with the run in flight. Every run uses up its
budget, solved or not. A run's own directory is in OUT/cells; its checkpoints are removed when its
results are written. To train seeds anew, remove their lines and that directory. Presets: {tasks};
{algorithms}."""


_STATES = {"new": "to run", "begun": "begun", "ended": "ended, to be recorded"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    out: str
    """Directory of the study: results.jsonl, report.md, curves.png and the runs, in cells/."""
    presets: tuple[str, ...] = ()
    """Presets to train."""
    envs: tuple[str, ...] = ()
    """Environments to train each of them on."""
    seeds: int = 5
    """How many seeds each preset has on each environment."""
    first_seed: int = 0
    """The first of them; the others follow it."""
    total_rows: int | None = None
    """Rows of each seed; by default what each preset says."""
    set: tuple[str, ...] = ()
    """Fields of the configuration, as NAME=VALUE, of every cell; they make it another cell. For
    curves of as many points give eval_every, in rows."""
    seeds_at_once: int | None = None
    """Most seeds to train in one program; by default all, which takes the most memory."""
    max_seconds: float | None = None
    """Wall-clock seconds after which the study ends as on SIGTERM."""
    dry_run: bool = False
    """List the cells and what there is of each, and train nothing."""
    report: bool = False
    """Only write report.md and curves.png anew, of all results; with presets and envs say what is
    not run of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    description = _DESCRIPTION.format(tasks=", ".join(TASKS), algorithms=", ".join(ALGORITHMS))
    flags = parse(Flags, argv, prog="jaxdqn study", description=description)
    flags = dataclasses.replace(flags, set=current_settings(flags.set))
    study = read_study(flags)
    if flags.dry_run:
        print("\n".join(listing(study, read_results(study.out / RESULTS).results)))
        return 0
    if flags.report:
        _report(study, flags, read_results(study.out / RESULTS).results)
        print(f"report in {study.out / REPORT}")
        return 0
    with ExitStack() as stack:
        try:
            study.out.mkdir(parents=True, exist_ok=True)
            lock(study.out, stack)
        except OSError as error:
            raise unwritable(study.out, error) from error
        return _go_on(study, flags)


def read_study(flags: Flags) -> Study:
    """Return what the flags ask for.

    Raises:
        ValueError: naming the flag, its value and what would be right.
    """
    _check(flags)
    overrides = read_settings(flags.set)
    for name in flags.presets:
        preset(name)  # refuses one that there is not
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    at_once = seeds[: flags.seeds_at_once]
    cells, refused = [], {}
    for env in flags.envs:
        for name in flags.presets:
            try:
                cells.append(make_cell(name, env, at_once, overrides, flags.total_rows))
            except ValueError as error:
                refused[f"{name} on {env}"] = str(error)
    if refused and not cells:
        raise ValueError(next(iter(refused.values())))
    if cells and all(cell.config.devices == 1 and is_small(cell.config) for cell in cells):
        use_cpu_threads(cells[0].config, None)
    limits = _limits(flags.envs)
    return Study(
        Path(flags.out), cells, refused, limits, seeds, flags.seeds_at_once, flags.max_seconds
    )


def listing(study: Study, results: Sequence[Record]) -> list[str]:
    """Return a line for each cell that says what there is of it."""
    lines = []
    for cell in study.cells:
        done = done_seeds(cell, results) & set(study.seeds)
        states = [f"{seeds_text(done)} done"] if done else []
        states += [
            f"{seeds_text(job.group.seeds)} {_STATES[job.group.state]}"
            for job in jobs_of(study, cell, results)
        ]
        lines.append(f"{cell}, {cell.config.total_rows:,} rows: {'; '.join(states)}")
    return lines + [f"{name}: refused: {why}" for name, why in study.refused.items()]


def _check(flags: Flags) -> None:
    """Refuse flags that are out of range, or do not go together."""
    for name in ("seeds", "seeds_at_once", "total_rows"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not 0 <= flags.first_seed <= 2**32 - flags.seeds:
        raise ValueError(
            f"first_seed={flags.first_seed}: must be from 0 to 2**32 - seeds={flags.seeds}"
        )
    if flags.max_seconds is not None and not 0 < flags.max_seconds < math.inf:
        raise ValueError(f"max_seconds={flags.max_seconds}: must be above 0 and finite")
    all_there_is = flags.report and not flags.presets and not flags.envs
    for name in ("presets", "envs"):
        values = getattr(flags, name)
        if not values and not all_there_is:
            raise ValueError(f"{name}=(): must be at least one")
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"{name}={twice[0]!r}: must be named once")
    if flags.dry_run and flags.report:
        raise ValueError("report=True: must come without dry_run")
    out = Path(flags.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={flags.out!r}: must be a directory, not a file")
    if flags.report and not out.is_dir():
        raise ValueError(f"out={flags.out!r}: must be the directory of a study")


def _limits(names: Sequence[str]) -> dict[str, int | None]:
    """Return the time limit of the episodes of each environment.

    Raises:
        ValueError: if there is no such environment.
    """
    if not names:
        return {}
    from jaxdqn import envs

    return {name: envs.make(name).spec.max_episode_steps for name in names}


def _go_on(study: Study, flags: Flags) -> int:
    """Run what there is no result of, and report; return the exit code."""
    file = study.out / RESULTS
    stored = read_results(file)
    repaired = repair(file, stored)
    if repaired is not None:
        print(repaired)
    jobs = [job for cell in study.cells for job in jobs_of(study, cell, stored.results)]
    for name, why in study.refused.items():
        complain(name, why)
    print(f"cells: {len(study.cells)}, of {seeds_text(study.seeds)}; runs to make: {len(jobs)}")
    keep_compiled_programs()
    outcome = run_jobs(study, jobs, lambda: _report(study, flags, read_results(file).results))
    _report(study, flags, read_results(file).results)
    print(f"report in {study.out / REPORT}")
    if outcome.ended_by is not None:
        print(
            f"interrupted ({outcome.ended_by}), runs left: {outcome.left} of {len(jobs)}; the same "
            "command goes on"
        )
    return FAILED if outcome.failed or study.refused else 0


def _report(study: Study, flags: Flags, results: Sequence[Record]) -> None:
    from jaxdqn.cli.study.report import Asked, write_report

    settings = read_settings(flags.set)
    elsewhere = {name: value for name, value in settings.items() if name in PLACE}
    asked = Asked(study.cells, study.seeds, flags.out, flags.seeds_at_once, elsewhere)
    write_report(results, asked)


if __name__ == "__main__":
    sys.exit(main())
