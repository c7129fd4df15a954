"""Train: ``jaxdqn run [PRESET] [flags]``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdqn.cli.aliases import current_flags
from jaxdqn.cli.backend import (
    check_virtual_devices,
    devices_of_mesh,
    keep_compiled_programs,
    set_up_devices,
    use_cpu_dispatch,
    use_cpu_threads,
)
from jaxdqn.cli.engine import (
    check_engine,
    make_engine,
    with_recorded_engine,
    without_engine_options,
)
from jaxdqn.cli.flags import collect_garbage_as_before, parse, run_command
from jaxdqn.cli.launch.rendezvous import ProcessSpec
from jaxdqn.cli.launch.supervisor import (
    Timeouts,
    check_timeouts,
    is_worker,
    process_spec,
    supervise,
)
from jaxdqn.cli.outcome import outcome
from jaxdqn.cli.parts import file_name, take_env_args, take_references
from jaxdqn.cli.run_flags import Flags
from jaxdqn.cli.run_help import print_requested_help
from jaxdqn.config.config import Config, replace
from jaxdqn.config.options import CONVOLUTIONS, Options
from jaxdqn.config.presets import PRESETS, preset
from jaxdqn.config.protocols import PROTOCOLS
from jaxdqn.monitoring.output import say
from jaxdqn.storage.directory import (
    CONFIG,
    SUMMARY,
    check_unused,
    is_run,
    path_part,
    read_config,
    read_config_file,
)

if TYPE_CHECKING:
    from jaxdqn.monitoring.loggers import Logger

DEFAULT_PRESET = "cartpole"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if is_worker():
        from jaxdqn.cli.launch.worker import work

        return work(_main, argv)
    return run_command(_main, argv)


class _Command(NamedTuple):
    """Checked arguments of the command."""

    name: str | None
    """Preset; None if there is none."""
    flags: Flags
    config: Config
    parts: dict[str, Any]
    """References to the caller's own parts, by name."""
    process: ProcessSpec | None
    """This process among several, if the flags describe it."""
    timeouts: Timeouts

    @property
    def many(self) -> bool:
        """True if the run has several processes."""
        return self.process is not None or self.flags.multi_host

    @property
    def out(self) -> Path:
        """Run directory; a default has the time of the call in its name."""
        if self.flags.out is not None:
            return Path(self.flags.out)
        own = self.parts.get("environment")
        env = self.config.env if own is None else file_name(own)
        return default_out(self.name or "run", self.config, env)


def _main(argv: Sequence[str]) -> int:
    argv = current_flags(argv, [field.name for field in dataclasses.fields(Flags)])
    command = _checked(argv)
    if command.many and not is_worker():
        return supervise(argv, command.process, command.timeouts)
    flags, out = command.flags, command.out
    if flags.out is not None and not command.many and not (flags.resume and is_run(out)):
        check_unused(out)
    _set_up_backend(command)
    if flags.explain:
        from jaxdqn.cli.explain import explain

        print(explain(command.config, command.name or "custom", command.parts))
    elif flags.debug:
        from jaxdqn.run.debug import debug

        debug(command.config, report=say, **command.parts)
    else:
        _train(command, out)
    return 0


def _checked(argv: Sequence[str]) -> _Command:
    """Parse and check the arguments.

    Raises:
        UsageError, ValueError: if an argument or a combination is invalid.
    """
    arguments, parts = take_references(argv)
    if "environment" in parts and any(word.split("=")[0] == "--env" for word in arguments):
        raise ValueError("env: must be left out with --environment, which replaces it")
    name, flags = read_flags(arguments, own_environment="environment" in parts)
    flags = with_recorded_engine(flags)
    _check_layers(arguments, flags, own_network="network" in parts)
    config = config_from(without_engine_options(flags))
    check_virtual_devices(flags.virtual_devices, config)
    if flags.resume and flags.out is None:
        raise ValueError("resume=True: must come with --out, the run to resume")
    if flags.extend is not None and not flags.resume:
        raise ValueError(f"extend={flags.extend!r}: must come with --resume")
    check_engine(flags)
    process = process_spec(
        flags.coordinator, flags.num_processes, flags.process_id, flags.multi_host
    )
    timeouts = Timeouts(flags.heartbeat_seconds, flags.initialization_seconds)
    check_timeouts(timeouts)
    command = _Command(name, flags, config, dict(parts), process, timeouts)
    if flags.debug and (command.many or flags.resume or flags.out is not None):
        raise ValueError("debug=True: must come without out, resume, coordinator and multi_host")
    if command.many and flags.explain:
        raise ValueError("explain=True: must come without coordinator and multi_host")
    return command


def _set_up_backend(command: _Command) -> None:
    """Set the threads and devices of JAX, before JAX is used for the first time."""
    flags, config = command.flags, command.config
    use_cpu_threads(config, flags.cpu_threads)
    by_name = flags.engine == "jit" and "environment" not in command.parts
    use_cpu_dispatch(config, flags.cpu_dispatch, by_name=by_name)
    set_up_devices(flags.virtual_devices, flags.memory_fraction)


def _train(command: _Command, out: Path) -> None:
    """Train, alone or as one of several processes."""
    flags, config, leads = command.flags, command.config, True
    if command.many:
        from jaxdqn.cli.launch.worker import join

        leads = join(command.process, command.timeouts)
    keep_compiled_programs()
    engine = make_engine(flags)
    from jaxdqn.run.profiling import Profiler, check_profile
    from jaxdqn.run.runner import run

    check_profile(flags.profile, config)
    callbacks = [] if flags.profile is None else [Profiler(flags.profile)]
    loggers = _loggers(flags, config) if leads else []
    if leads and flags.resume and not is_run(out):
        say(f"no run in {out} yet: starting one")
    result = run(
        config,
        out=out,
        unique=flags.out is None,
        resume=flags.resume,
        extend=flags.extend,
        preset=command.name,
        **command.parts,
        engine=engine,
        loggers=loggers,
        callbacks=callbacks,
    )
    if leads:
        say(f"summary in {(result.directory or out) / SUMMARY}")


def _loggers(flags: Flags, config: Config) -> list[Logger]:
    """Return the loggers selected by the flags; first those of other packages, which may fail."""
    from jaxdqn.monitoring.loggers import Logger
    from jaxdqn.monitoring.terminal import make_progress_logger

    def log(kind: str, record: dict[str, Any]) -> None:
        if kind == "metrics":  # the programs are compiled
            collect_garbage_as_before()
        if kind == "summary":
            say(outcome(record))

    loggers = []
    if flags.tensorboard:
        from jaxdqn.monitoring.tensorboard import make_tensorboard_logger

        loggers.append(make_tensorboard_logger())
    if flags.wandb:
        from jaxdqn.monitoring.wandb import make_wandb_logger

        loggers.append(make_wandb_logger())
    if flags.prometheus is not None:
        from jaxdqn.monitoring.prometheus import make_prometheus_logger

        loggers.append(make_prometheus_logger(flags.prometheus))
    # In this order, a live display draws its last frame before the outcome is printed.
    return [*loggers, make_progress_logger(config), Logger(log, lambda: None, "outcome")]


def read_flags(argv: Sequence[str], *, own_environment: bool = False) -> tuple[str | None, Flags]:
    """Return the name of the preset and the flags.

    The name is None if the defaults come from a file or from the run to resume. It is also None for
    a run with a custom environment and no preset, whose defaults are those of ``Config``.

    Raises:
        UsageError, ValueError: if the preset, a flag or a value is invalid.
    """
    name, rest = None, take_env_args(argv)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    plain = own_environment and name is None
    flags = _parse(rest, Config() if plain else preset(name or DEFAULT_PRESET))
    if flags.protocol is not None and (
        own_environment or flags.from_ or (not name and flags.resume)
    ):
        raise ValueError(f"protocol={flags.protocol!r}: must come with a preset and --env, whose "
                         "defaults it changes")  # fmt: skip
    named = name or DEFAULT_PRESET
    if not plain and (flags.protocol is not None or flags.env != PRESETS[named].env):
        flags = _parse(rest, preset(named, env=flags.env, protocol=flags.protocol))
    if flags.from_ is not None:
        if name is not None or flags.resume:
            other = f"preset {name!r}" if name is not None else "--resume"
            raise ValueError(f"from={flags.from_!r}: must not come with {other}")
        return None, _parse(rest, _configuration(Path(flags.from_)))
    if name is None and flags.resume and flags.out is not None:
        if not is_run(flags.out):
            raise ValueError(
                f"out={flags.out!r}: must be a run to resume; to start one, name a preset"
            )
        return None, _parse(rest, read_config(flags.out))
    if plain:
        return None, flags
    name = name or DEFAULT_PRESET
    if own_environment:
        # The solve return and the protocol of the preset are those of another environment.
        base = replace(preset(name), solve_return=None, stop_when="never", **PROTOCOLS["gymnax"])
        flags = _parse(rest, base)
    return name, flags


def _configuration(path: Path) -> Config:
    file = path / CONFIG if path.is_dir() else path
    try:
        return read_config_file(file)
    except OSError as error:
        raise ValueError(f"from={str(path)!r}: must be readable: {error.strerror}") from error


def _parse(argv: Sequence[str], defaults: Config) -> Flags:
    values = _values(defaults)
    print_requested_help(argv, Flags(**values))
    flags = parse(Flags, argv, default=Flags(**values))
    if flags.mesh is None:
        return flags
    sizes: dict[str, Any] = devices_of_mesh(flags.mesh)
    # Parse again with impossible defaults, to tell explicit numbers of devices from defaults.
    explicit = parse(Flags, argv, default=Flags(**(values | dict.fromkeys(sizes, 0))))
    for name, size in sizes.items():
        if getattr(explicit, name) not in (0, size):
            raise ValueError(
                f"{name}={getattr(explicit, name)}: must be {size} with mesh={flags.mesh!r}, or "
                "be left out"
            )
    return dataclasses.replace(flags, **sizes)


def config_from(flags: Flags) -> Config:
    """Return the validated configuration.

    Raises:
        ValueError: if an option has an invalid value, or one that conflicts with another option.
    """
    return Config(**_values(flags))


def _check_layers(argv: Sequence[str], flags: Flags, *, own_network: bool) -> None:
    """Check that ``--hidden-sizes``, if given, has an effect on the network.

    Presets set this field too, so only the command line shows that the user gave it.
    """
    given = any(word.partition("=")[0].replace("_", "-") == "--hidden-sizes" for word in argv)
    if given and (own_network or flags.network in CONVOLUTIONS):
        network = "your own network" if own_network else f"network={flags.network!r}"
        raise ValueError(
            f"hidden_sizes={flags.hidden_sizes}: must be left out with {network}, which has its "
            "own layers"
        )


def default_out(name: str, config: Config, env: str | None = None) -> Path:
    """Return the default directory of a run that starts now.

    Args:
        name: name of the preset.
        config: configuration of the run.
        env: name of the environment, if it is not ``config.env``.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / path_part(f"{name}-{env or config.env}-s{config.seed}-{stamp}")


def _values(options: Options) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(Options)}


if __name__ == "__main__":
    sys.exit(main())
