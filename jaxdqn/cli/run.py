"""Train: ``jaxdqn run [PRESET] [flags]``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxdqn.cli.backend import (
    check_virtual_devices,
    devices_of_mesh,
    keep_compiled_programs,
    set_up_devices,
    use_cpu_threads,
)
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.cli.launch.supervisor import Timeouts, check_timeouts, is_worker, place_of, supervise
from jaxdqn.cli.parts import file_name, take_references
from jaxdqn.config.config import Config
from jaxdqn.config.presets import ALGORITHMS, PRESETS, TASKS, preset
from jaxdqn.monitoring.tables import population_tables
from jaxdqn.storage.directory import (
    CONFIG,
    SUMMARY,
    check_unused,
    is_run,
    read_config,
    read_config_file,
)

DEFAULT_PRESET = "cartpole"

_DESCRIPTION = """Train a DQN agent. PRESET, if given, comes first and sets the defaults shown
below. It is a task, {tasks}; or an algorithm, {algorithms}, with the settings of the task that
--env names. The run directory receives config.json, metrics.jsonl,
evaluations.jsonl, events.jsonl, summary.json, curve.png, checkpoints/ and the parameters best/ and
last/. Ctrl-C or SIGTERM ends the run at the next chunk, with everything written, and --resume goes
on with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Config):
    out: str | None = None
    """Directory of the run, new or empty; by default runs/PRESET-ENV-sSEED-TIME."""
    resume: bool = False
    """Go on, from its newest checkpoint, with the run that has begun in --out; begin it if none
    has. Without a PRESET the run's own configuration gives the defaults."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Take the defaults from a config.json instead of a preset: repeat that run."""
    cpu_threads: int | None = None
    """Threads that XLA uses on CPU; by default one for small dense networks, which is faster, and
    as many as cores for others."""
    mesh: str | None = None
    """Devices by their use, as data=2,model=2: so many replicas, each split over so many devices;
    sets devices and model_devices, which may be left out."""
    virtual_devices: int | None = None
    """Devices to make of the CPU, to develop on one machine what is to run on several devices."""
    memory_fraction: float | None = None
    """Share of a GPU's memory that JAX takes at its start (0.75 by default), so that several
    processes fit on one; see docs/sharing.md."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for a run over several processes: each is started with this and the
    next two flags, and --devices counts the devices of all; see docs/cluster.md."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0; process 0 writes the files."""
    multi_host: bool = False
    """Instead of those three: let JAX find the other processes, on Slurm, Kubernetes and Cloud
    TPU."""
    heartbeat_seconds: int = 10
    """After so long without a sign of life from a process the others end; at most 30."""
    initialization_seconds: int = 30
    """How long the processes wait for each other at the start."""
    environment: str | None = None
    """Environment of your own, as MODULE:FUNCTION or FILE.py:FUNCTION, instead of --env: the
    function takes no arguments and returns an Environment. --network and --optimizer take such
    references, too. The current directory is importable; the run directory remembers them."""
    explain: bool = False
    """Say what would run, its shapes, bytes and schedules, and allocate nothing."""

    def __post_init__(self) -> None:
        """Accept anything: ``config_from`` validates."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if is_worker():
        from jaxdqn.cli.launch.worker import work

        return work(_main, argv)
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    arguments, parts = take_references(argv)
    name, flags = read_flags(arguments, own_environment="environment" in parts)
    config = config_from(flags)
    check_virtual_devices(flags.virtual_devices, config)
    if flags.resume and flags.out is None:
        raise ValueError("resume=True: must come with --out, the run to go on with")
    place = place_of(flags.coordinator, flags.num_processes, flags.process_id, flags.multi_host)
    timeouts = Timeouts(flags.heartbeat_seconds, flags.initialization_seconds)
    check_timeouts(timeouts)
    many = place is not None or flags.multi_host
    if many and flags.explain:
        raise ValueError("explain=True: must come without coordinator and multi_host")
    if many and not is_worker():
        return supervise(argv, place, timeouts)
    env = file_name(parts["environment"]) if "environment" in parts else config.env
    out = default_out(name or "run", config, env) if flags.out is None else Path(flags.out)
    if flags.out is not None and not many and not (flags.resume and is_run(out)):
        check_unused(out)
    use_cpu_threads(config, flags.cpu_threads)
    set_up_devices(flags.virtual_devices, flags.memory_fraction)
    if flags.explain:
        from jaxdqn.cli.explain import explain

        print(explain(config, name or "custom", parts))
        return 0

    leads = True
    if many:
        from jaxdqn.cli.launch.worker import join

        leads = join(place, timeouts)
    keep_compiled_programs()
    from jaxdqn.monitoring.terminal import make_progress_logger
    from jaxdqn.run.runner import run

    if leads and flags.resume and not is_run(out):
        print(f"no run in {out} yet: it begins")
    result = run(
        config,
        out=out,
        resume=flags.resume,
        preset=name,
        **parts,
        loggers=[make_progress_logger(config)] if leads else [],
    )
    if leads:
        print(outcome(result.summary))
        print(f"summary in {out / SUMMARY}")
    return 0


def read_flags(argv: Sequence[str], *, own_environment: bool = False) -> tuple[str | None, Flags]:
    """Return the preset's name and the flags.

    The name is None where a file or the run that goes on gives the defaults, and where the run
    has its own environment: without a preset its defaults are those of ``Config``.

    Raises:
        Refused, ValueError: if the preset, a flag or a value is not understood.
    """
    name, rest = None, list(argv)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    plain = own_environment and name is None
    flags = _parse(rest, Config() if plain else preset(name or DEFAULT_PRESET))
    if name in ALGORITHMS and flags.env != PRESETS[name].env:
        flags = _parse(rest, preset(name, env=flags.env))
    if flags.from_ is not None:
        if name is not None or flags.resume:
            what = f"preset {name!r}" if name is not None else "--resume"
            raise ValueError(f"from={flags.from_!r}: must not come with {what}")
        return None, _parse(rest, _configuration(Path(flags.from_)))
    if name is None and flags.resume and flags.out is not None:
        if not is_run(flags.out):
            raise ValueError(
                f"out={flags.out!r}: must be a run to go on with; to begin one, name a preset"
            )
        return None, _parse(rest, read_config(flags.out))
    return None if plain else name or DEFAULT_PRESET, flags


def _configuration(path: Path) -> Config:
    file = path / CONFIG if path.is_dir() else path
    try:
        return read_config_file(file)
    except OSError as error:
        raise ValueError(f"from={str(path)!r}: must be readable: {error.strerror}") from error


def _parse(argv: Sequence[str], defaults: Config) -> Flags:
    def parsed(values: dict[str, Any]) -> Flags:
        return parse(
            Flags,
            argv,
            default=Flags(**values),
            prog="jaxdqn run [PRESET]",
            description=_DESCRIPTION.format(
                tasks=", ".join(TASKS), algorithms=", ".join(ALGORITHMS)
            ),
        )

    flags = parsed(_values(defaults))
    if flags.mesh is None:
        return flags
    sizes: dict[str, Any] = devices_of_mesh(flags.mesh)
    # Once more, to tell what is asked for from what is a default: no number of devices is 0.
    asked = parsed(_values(defaults) | dict.fromkeys(sizes, 0))
    for name, size in sizes.items():
        if getattr(asked, name) not in (0, size):
            raise ValueError(
                f"{name}={getattr(asked, name)}: must be {size} with mesh={flags.mesh!r}, or be "
                "left out"
            )
    return dataclasses.replace(flags, **sizes)


def config_from(flags: Flags) -> Config:
    """Return the validated configuration.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    return Config(**_values(flags))


def default_out(name: str, config: Config, env: str | None = None) -> Path:
    """Return a run directory that does not exist yet.

    Args:
        name: of the preset.
        config: the run.
        env: name of the environment, if it is not ``config.env``.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{name}-{env or config.env}-s{config.seed}-{stamp}"
    out, count = base, 1
    while out.exists():
        count += 1
        out = base.with_name(f"{base.name}-{count}")
    return out


def outcome(summary: dict[str, Any]) -> str:
    """Return a summary as a few lines for a person."""
    if summary["solved"]:
        solved = f"solved in {summary['seconds_to_solve']:.2f} s"
    else:
        solved = "not solved" if summary["solve_return"] is not None else "done"
    learners = summary.get("learners", ())
    if learners and summary["solve_return"] is not None:
        solved += f" ({summary['learners_solved']} of {len(learners)} learners)"
    if summary["interrupted"]:
        solved += f", interrupted ({summary['ended_by']}); --resume goes on"
    return (
        f"{solved}: greedy return {summary['eval_return_mean']:.2f} at the end, "
        f"{summary['best_eval_return_mean']:.2f} at best, over {summary['eval_episodes']} episodes"
        "\n"
        f"{summary['env_steps']:,} environment steps ({summary['rows']:,} rows with resets), "
        f"{summary['gradient_steps']:,} gradient steps in {summary['train_seconds']:.2f} s of "
        f"training, {summary['eval_seconds']:.2f} s of evaluation, after "
        f"{summary['compile_seconds']:.2f} s of compilation\n"
        f"{summary['env_steps_per_second']:,.0f} environment steps/s, "
        f"{summary['gradient_steps_per_second']:,.0f} gradient steps/s"
        + (f"\n\n{population_tables(learners)}" if learners else "")
    )


def _values(config: Config) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}


if __name__ == "__main__":
    sys.exit(main())
