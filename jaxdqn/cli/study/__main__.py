"""Train presets on environments with several seeds each: ``jaxdqn study``.

Results are appended to one file; seeds with a result are not trained again. The report follows the
protocol of rliable (Agarwal et al. 2021): interquartile means with stratified bootstrap intervals.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxdqn.cli.aliases import current_settings
from jaxdqn.cli.backend import is_small, keep_compiled_programs, use_cpu_threads
from jaxdqn.cli.flags import FAILED, parse, run_command
from jaxdqn.cli.parts import file_name
from jaxdqn.cli.study.cells import Cell, make_cell
from jaxdqn.cli.study.definition import read_definition
from jaxdqn.cli.study.jobs import Study, jobs_of, print_error, run_jobs
from jaxdqn.cli.study.results import REPORT, RESULTS, done_seeds, read_results, repair
from jaxdqn.cli.study.settings import EXECUTION_FIELDS, read_settings, seeds_text
from jaxdqn.config.algorithm_presets import ALGORITHMS
from jaxdqn.config.config import replace
from jaxdqn.config.presets import preset
from jaxdqn.config.task_presets import TASKS
from jaxdqn.monitoring.output import say
from jaxdqn.storage.directory import lock, unwritable_error
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.parts import check_reference, resolve

_DESCRIPTION = """Train presets on environments, several seeds each, and report interquartile means
over seeds. A preset on an environment is a cell; its seeds train together in one program on the
device. Results are appended to OUT/results.jsonl when a run ends. The same command, or one with
more presets, environments or seeds, trains only what is missing. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1
or --max-seconds stops the study with all its data on disk; repeat the command to resume the
interrupted run. Every run trains for its complete budget, solved or not. Run directories are in
OUT/cells; checkpoints are removed when the results are recorded. To train seeds again, remove their
lines from results.jsonl and their run directory. Presets: {tasks}; {algorithms}."""


_PARTS = ("environment", "network", "optimizer")
"""Flags that are references to custom parts."""
_STATES = {"new": "to run", "started": "started", "finished": "finished, not recorded"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    out: str
    """Directory of the study: results.jsonl, report.md, curves.png, and the runs in cells/."""
    definition: str | None = None
    """TOML file with the values of presets, envs, environment, network, optimizer, seeds,
    first_seed, total_rows, seeds_at_once and a table [settings], as in experiments/studies/. A flag
    replaces the value of the file."""
    presets: tuple[str, ...] = ()
    """Presets to train."""
    envs: tuple[str, ...] = ()
    """Environments to train each preset on."""
    environment: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Your own environment, as MODULE:FUNCTION or FILE.py:FUNCTION, instead of --envs. The function
    takes no arguments and returns an Environment. The current directory is importable. Cells with
    different references are different cells; the content of the file is not compared."""
    network: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Your own network in every cell; the function returns a flax module or a Network. --set
    network=NAME chooses a built-in one."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Your own optimizer in every cell; the function returns a function hyper ->
    optax.GradientTransformation. --set optimizer=NAME chooses a built-in one."""
    seeds: int = 5
    """Number of seeds of each preset on each environment."""
    first_seed: int = 0
    """First seed; the others follow consecutively."""
    total_rows: int | None = None
    """Rows per seed; by default the value of each preset."""
    set: tuple[str, ...] = ()
    """Configuration fields of every cell, as NAME=VALUE. Cells with different fields are different
    cells. For curves with equally many points set eval_every, in rows."""
    seeds_at_once: int | None = None
    """Maximum number of seeds per program; by default all, which needs the most memory."""
    max_seconds: float | None = None
    """Wall-clock seconds after which the study stops as on SIGTERM."""
    dry_run: bool = False
    """List the cells and their state, and train nothing."""
    report: bool = False
    """Only write report.md and curves.png, from all results. With presets and envs the report also
    lists their missing results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = read_flags(argv)
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
            raise unwritable_error(study.out, error) from error
        return _run_study(study, flags)


def read_flags(argv: Sequence[str]) -> Flags:
    """Parse the command line; with ``--definition`` its file replaces the defaults.

    Raises:
        UsageError: if a flag or a value is invalid.
        ValueError: if the definition is invalid.
    """
    description = _DESCRIPTION.format(tasks=", ".join(TASKS), algorithms=", ".join(ALGORITHMS))
    options: dict[str, Any] = {"prog": "jaxdqn study", "description": description}
    flags = parse(Flags, argv, **options)
    if flags.definition is None:
        return flags
    defaults = Flags(out=tyro.MISSING, **read_definition(flags.definition))
    return parse(Flags, argv, default=defaults, **options)


def read_study(flags: Flags) -> Study:
    """Return the study that the flags describe.

    Raises:
        ValueError: if a flag is invalid; the message names it, its value and the constraint.
    """
    _check(flags)
    overrides = read_settings(flags.set)
    for name in flags.presets:
        preset(name)  # raises if there is no such preset
    parts = _references(flags, overrides)
    cells, invalid = _make_cells(flags, overrides, parts)
    if invalid and not cells:
        raise ValueError(next(iter(invalid.values())))
    if cells and all(cell.config.devices == 1 and is_small(cell.config) for cell in cells):
        use_cpu_threads(cells[0].config, None)
    own = {name: resolve(name, reference) for name, reference in parts.items()}
    if "environment" in own:
        spec = own["environment"].spec
        limits = {spec.name: spec.max_episode_steps}
        cells = [cell._replace(config=replace(cell.config, env=spec.name)) for cell in cells]
    else:
        limits = _limits(flags.envs)
    seeds, at_once = _seeds(flags), flags.seeds_at_once
    return Study(Path(flags.out), cells, invalid, limits, seeds, at_once, flags.max_seconds)


def _seeds(flags: Flags) -> range:
    return range(flags.first_seed, flags.first_seed + flags.seeds)


def _references(flags: Flags, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return the references to custom parts.

    Raises:
        ValueError: if one is malformed, or a setting is for the part that it replaces.
    """
    given = {name: getattr(flags, name) for name in _PARTS}
    references = {name: value for name, value in given.items() if value is not None}
    replaced = {"network": ("network", "hidden_sizes"), "optimizer": ("optimizer",)}
    for name, reference in references.items():
        check_reference(name, reference)
        for field in replaced.get(name, ()):
            if field in overrides:
                raise ValueError(f"{name}={reference!r}: must come without --set {field}")
    return references


def _make_cells(
    flags: Flags, overrides: Mapping[str, Any], parts: Mapping[str, str]
) -> tuple[list[Cell], dict[str, str]]:
    """Return the cells, and the error messages of invalid ones.

    A custom environment has the name of its module until it is imported.
    """
    envs = (file_name(parts["environment"]),) if "environment" in parts else flags.envs
    at_once = _seeds(flags)[: flags.seeds_at_once]
    cells, invalid = [], {}
    for env in envs:
        for name in flags.presets:
            try:
                cells.append(make_cell(name, env, at_once, overrides, flags.total_rows, parts))
            except ValueError as error:
                invalid[f"{name} on {env}"] = str(error)
    return cells, invalid


def listing(study: Study, results: Sequence[Record]) -> list[str]:
    """Return one line per cell: its rows and the state of its seeds."""
    lines = []
    for cell in study.cells:
        done = done_seeds(cell, results) & set(study.seeds)
        states = [f"{seeds_text(done)} done"] if done else []
        states += [
            f"{seeds_text(job.group.seeds)} {_STATES[job.group.state]}"
            for job in jobs_of(study, cell, results)
        ]
        lines.append(f"{cell}, {cell.config.total_rows:,} rows: {'; '.join(states)}")
    return lines + [f"{name}: invalid: {message}" for name, message in study.invalid.items()]


def _check(flags: Flags) -> None:
    """Raise if a flag is out of range or flags contradict each other."""
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
    own = flags.environment is not None
    if own and flags.envs:
        raise ValueError(f"environment={flags.environment!r}: must come without --envs")
    all_results = flags.report and not flags.presets and not flags.envs and not own
    for name in ("presets", "envs"):
        values = getattr(flags, name)
        if not values and not all_results and not (own and name == "envs"):
            raise ValueError(f"{name}=(): must contain at least one name")
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise ValueError(f"{name}={repeated[0]!r}: must be named once")
    if flags.dry_run and flags.report:
        raise ValueError("report=True: must not be combined with dry_run")
    out = Path(flags.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={flags.out!r}: must be a directory, not a file")
    if flags.report and not out.is_dir():
        raise ValueError(f"out={flags.out!r}: must be the directory of a study")


def _limits(names: Sequence[str]) -> dict[str, int | None]:
    """Return the time limit of episodes on each environment.

    Raises:
        ValueError: if an environment is unknown.
    """
    if not names:
        return {}
    from jaxdqn import envs
    from jaxdqn.config.config import Config

    def limit(name: str) -> int | None:
        host = envs.configured_host_environment(Config(env=name))
        return (host or envs.make(name)).spec.max_episode_steps

    return {name: limit(name) for name in names}


def _run_study(study: Study, flags: Flags) -> int:
    """Train the seeds without a result, write the report, and return the exit code."""
    file = study.out / RESULTS
    stored = read_results(file)
    message = repair(file, stored)
    if message is not None:
        say(message)
    jobs = [job for cell in study.cells for job in jobs_of(study, cell, stored.results)]
    for name, reason in study.invalid.items():
        print_error(name, reason)
    say(f"cells: {len(study.cells)}, {seeds_text(study.seeds)} each; runs to make: {len(jobs)}")
    keep_compiled_programs()
    outcome = run_jobs(study, jobs, lambda: _report(study, flags, read_results(file).results))
    _report(study, flags, read_results(file).results)
    say(f"report in {study.out / REPORT}")
    if outcome.ended_by is not None:
        say(
            f"interrupted ({outcome.ended_by}), runs left: {outcome.left} of {len(jobs)}; repeat "
            "the command to resume"
        )
    return FAILED if outcome.failed or study.invalid else 0


def _report(study: Study, flags: Flags, results: Sequence[Record]) -> None:
    from jaxdqn.cli.study.report import Request, write_report

    settings = read_settings(flags.set)
    execution = {name: value for name, value in settings.items() if name in EXECUTION_FIELDS}
    request = Request(study.cells, study.seeds, flags.out, flags.seeds_at_once, execution)
    write_report(results, request)


if __name__ == "__main__":
    sys.exit(main())
