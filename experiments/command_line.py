"""What the commands share: flags from a dataclass, and one line for what is refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import tyro

from jaxdqn.config import Config
from jaxdqn.run_directory import RunFailed
from jaxdqn.validation import suggest

REFUSED = 2
"""Exit code of a command whose input is refused."""

FAILED = 1
"""Exit code of a run that could not go on."""

SMALL = 2**21
"""Multiply-adds of a batch; measured on 2 cores: with 1.3 million one thread is 1.7 times as
fast as two, with 2.1 million as fast, with 8.5 million 0.7 times."""


class Refused(Exception):
    """What the user asked for cannot be done; the message is one line."""


def parse(flags: type[Any], argv: Sequence[str], **options: Any) -> Any:
    """Read an instance of the dataclass ``flags`` from the command line.

    ``--help`` prints the help and exits. ``options`` are those of ``tyro.cli``.

    Raises:
        Refused: if a flag or a value is not understood.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(flags, args=argv, return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise Refused(_complaint(complaint.getvalue())) from None
    if unknown:
        raise Refused(_unknown(unknown[0], [field.name for field in fields(flags)]))
    return parsed


def guard(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; what it refuses is one line on stderr."""
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except (Refused, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except RunFailed as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # Who read the output has gone; nor can the interpreter flush it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def use_cpu_threads(config: Config, asked: int | None) -> None:
    """Settle how many threads XLA uses on CPU; call before JAX computes anything.

    By default one for small dense networks: their operations take microseconds, which
    handing them from core to core would double (``experiments.compare --only
    cpu-threads``). An ``NPROC`` that is set already counts for more.

    Raises:
        ValueError: if fewer than one is asked for.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"cpu_threads={asked}: must be at least 1")
    if asked is None and config.devices == 1 and is_small(config):
        asked = 1
    if asked is not None:
        os.environ.setdefault("NPROC", str(asked))


def set_up_devices(virtual: int | None, memory_fraction: float | None) -> None:
    """Settle what devices JAX finds; call before it computes anything.

    Args:
        virtual: CPU devices to make.
        memory_fraction: share of a GPU's memory to take at the start.

    Raises:
        ValueError: if a value is out of its range.
    """
    if virtual is not None and virtual < 1:
        raise ValueError(f"virtual_devices={virtual}: must be at least 1")
    if memory_fraction is not None:
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction={memory_fraction}: must be above 0 and at most 1")
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(memory_fraction)
        # Its former name, beside which XLA refuses the new one.
        os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    if virtual is not None:
        import jax

        # Where there are accelerators too, the CPU's devices are what was asked for.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", virtual)


def devices_of_mesh(mesh: str) -> dict[str, int]:
    """Return the fields of a configuration that a mesh such as ``data=2,model=2`` stands for.

    Raises:
        ValueError: if it is not of that form.
    """
    sizes: dict[str, int] = {}
    for part in mesh.split(","):
        axis, _, size = part.partition("=")
        if axis not in ("data", "model") or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh={mesh!r}: must be data=D,model=M with whole numbers of at least 1"
            )
        if axis in sizes:
            raise ValueError(f"mesh={mesh!r}: must name {axis} once")
        sizes[axis] = int(size)
    model = sizes.get("model", 1)
    return {"devices": sizes.get("data", 1) * model, "model_devices": model}


def check_virtual_devices(virtual: int | None, config: Config) -> None:
    """Refuse to make more devices of the CPU than a run uses.

    Raises:
        ValueError: naming both.
    """
    if virtual is not None and virtual > config.devices:
        raise ValueError(
            f"virtual_devices={virtual}: must be at most devices={config.devices}, which the run "
            f"uses; to use them say --devices {virtual}"
        )


def is_small(config: Config) -> bool:
    """Say whether a batch is fewer multiply-adds in the hidden layers than threads pay for."""
    convolutions = config.network in ("minatar", "nature") or config.env.endswith("-MinAtar")
    if convolutions and config.network != "mlp":
        return False
    weights = sum(a * b for a, b in itertools.pairwise(config.hidden_sizes))
    if config.loss == "implicit_quantile" and config.hidden_sizes:
        weights += config.quantiles * config.hidden_sizes[-1] ** 2  # the head, once for each
    return weights * max(config.batch_per_device, config.envs_per_device) < SMALL


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk, so that the next start is faster.

    They lie in ``$JAX_COMPILATION_CACHE_DIR``, or in the user's cache directory
    where that can be written.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(caches) / "jaxdqn" / "xla"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a start without a cache is only slower
        jax.config.update("jax_compilation_cache_dir", str(directory))
    # The programs of a run are few and each is worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _complaint(text: str) -> str:
    """Return the complaint in what tyro prints: a box of a title, the complaint, and advice.

    The parts are apart by rules, drawn in box characters or, where the output
    cannot show those, in hyphens; the title may stand in the upper rule.
    """
    parts: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in text.splitlines()):
        if line.startswith(("╭", "╰")) or (len(line) > 3 and not line.strip("─-")):
            parts.append([])
        elif line:
            parts[-1].append(line)
    return " ".join(parts[1] if len(parts) > 1 else parts[0])


def _unknown(token: str, names: list[str]) -> str:
    if not token.startswith("-"):
        return f"{token!r}: an argument too many, or out of place; see --help"
    flags = [name.replace("_", "-") for name in names]
    wanted = token.lstrip("-").partition("=")[0].replace("_", "-")
    near = suggest(wanted, flags).split(", ")
    if len(near) == len(flags):
        return f"{token}: no such flag; see --help"
    return f"{token}: no such flag; nearest: {', '.join(f'--{name}' for name in near)}"
