"""Train: ``python -m experiments.run [PRESET] [flags]``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.command_line import guard, keep_compiled_programs, parse, use_cpu_threads
from jaxdqn.config import Config
from jaxdqn.presets import PRESETS, preset
from jaxdqn.run_directory import (
    CONFIG,
    SUMMARY,
    check_unused,
    is_run,
    read_config,
    read_config_file,
)

DEFAULT_PRESET = "cartpole"

_DESCRIPTION = """Train a DQN agent. PRESET, if given, comes first and sets the defaults shown
below; presets: {presets}. The run directory receives config.json, metrics.jsonl,
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
    explain: bool = False
    """Say what would run, its shapes, bytes and schedules, and allocate nothing."""

    def __post_init__(self) -> None:
        """Accept anything: ``config_from`` validates."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return guard(_main, argv)


def _main(argv: Sequence[str]) -> None:
    name, flags = read_flags(argv)
    config = config_from(flags)
    if flags.resume and flags.out is None:
        raise ValueError("resume=True: must come with --out, the run to go on with")
    if flags.out is None:
        out = default_out(name or "run", config)
    else:
        out = Path(flags.out)
        if not (flags.resume and is_run(out)):
            check_unused(out)
    use_cpu_threads(config, flags.cpu_threads)
    if config.devices > 1:
        _prepare_virtual_devices(config.devices)
    if flags.explain:
        from experiments.explain import explain

        print(explain(config, name or "custom"))
        return

    keep_compiled_programs()
    from jaxdqn.loggers import make_progress_logger
    from jaxdqn.run import run

    if flags.resume and not is_run(out):
        print(f"no run in {out} yet: it begins")
    result = run(
        config,
        out=out,
        resume=flags.resume,
        preset=name,
        loggers=[make_progress_logger(config)],
    )
    print(outcome(result.summary))
    print(f"summary in {out / SUMMARY}")


def read_flags(argv: Sequence[str]) -> tuple[str | None, Flags]:
    """Return the preset's name and the flags.

    The name is None where a file or the run that goes on gives the defaults.

    Raises:
        Refused, ValueError: if the preset, a flag or a value is not understood.
    """
    name, rest = None, list(argv)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    flags = _parse(rest, preset(name or DEFAULT_PRESET))
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
    return name or DEFAULT_PRESET, flags


def _configuration(path: Path) -> Config:
    file = path / CONFIG if path.is_dir() else path
    try:
        return read_config_file(file)
    except OSError as error:
        raise ValueError(f"from={str(path)!r}: must be readable: {error.strerror}") from error


def _parse(argv: Sequence[str], defaults: Config) -> Flags:
    return parse(
        Flags,
        argv,
        default=Flags(**_values(defaults)),
        prog="python -m experiments.run [PRESET]",
        description=_DESCRIPTION.format(presets=", ".join(PRESETS)),
    )


def config_from(flags: Flags) -> Config:
    """Return the validated configuration.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    return Config(**_values(flags))


def default_out(name: str, config: Config) -> Path:
    """Return a run directory that does not exist yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{name}-{config.env}-s{config.seed}-{stamp}"
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
    )


def _values(config: Config) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}


def _prepare_virtual_devices(count: int) -> None:
    """Let a host without accelerators stand for ``count`` devices."""
    import jax

    # Counts CPU devices only; where there are accelerators, those are used.
    jax.config.update("jax_num_cpu_devices", count)


if __name__ == "__main__":
    sys.exit(main())
