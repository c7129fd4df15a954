"""Runs of a project: execute the commands of its page in order, and read their results."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.config.config import Config, to_dict
from jaxdqn.storage.directory import SUMMARY, is_run, read_config
from jaxdqn.storage.engine_record import engine_text, read_engine

FIELDS = (
    "preset", "env", "mapping", "rows", "env_steps", "gradient_steps", "train_seconds",
    "compile_seconds", "env_steps_per_second", "gradient_steps_per_second", "solve_return",
    "solved", "seconds_to_solve", "eval_episodes", "eval_return_mean", "eval_return_std",
    "eval_terminated_share",
)  # fmt: skip
"""Entries of ``summary.json`` that a project records."""


class Arrangement(NamedTuple):
    """Arrangement of processes and devices for the same training."""

    name: str
    """Name in the table."""
    flags: tuple[str, ...]
    """Flags of ``jaxdqn run`` for this arrangement."""
    packages: tuple[str, ...] = ()
    """Required packages."""


def missing(packages: Sequence[str]) -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def require(packages: Mapping[str, str]) -> None:
    """Check that packages are installed.

    Args:
        packages: extra of jaxdqn that installs each package, by name of the package.

    Raises:
        ValueError: naming the missing packages, and the command that installs them.
    """
    absent = missing(list(packages))
    if absent:
        extras = ",".join(dict.fromkeys(packages[name] for name in absent))
        raise ValueError(
            f"{', '.join(absent)}: must be installed for this project: "
            f'pip install "jaxdqn[{extras}]"'
        )


def check_drawable(config: Config) -> None:
    """Check, before anything is trained, that episodes of a configuration can be drawn.

    Raises:
        ValueError: if its environment cannot be made or cannot be drawn.
    """
    from jaxdqn import envs
    from jaxdqn.envs.video import require_drawable

    host = envs.configured_host_environment(config)
    require_drawable(envs.configured_environment(config) if host is None else host)


def command(*words: str) -> None:
    """Run a ``jaxdqn`` command in a new process, which shares the standard streams of this one.

    Raises:
        RuntimeError: if it fails.
    """
    print(f"$ jaxdqn {shlex.join(words)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "jaxdqn", *words], check=False)
    if ended.returncode:
        raise RuntimeError(f"jaxdqn {words[0]} ended with exit code {ended.returncode}")


def train(preset: str, flags: Sequence[str], out: Path) -> dict[str, Any]:
    """Train a preset into a directory, and return ``FIELDS`` of its summary.

    A run that is complete is read and not trained again; one that was interrupted is resumed.

    Raises:
        ValueError: if the directory contains a run of another configuration or engine; the message
            names the first difference.
        RuntimeError: if the command fails, or the run is interrupted again.
    """
    if is_run(out):
        check_same_flags(preset, flags, out)
    if not _is_complete(out):
        resume = ["--resume"] if is_run(out) else [preset, *flags]
        command("run", *resume, "--out", str(out))
        if not _is_complete(out):
            raise RuntimeError(f"{out}: the run was interrupted; repeat the command to resume it")
    found = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    return {name: found.get(name) for name in FIELDS}


def check_same_flags(preset: str, flags: Sequence[str], out: Path) -> None:
    """Check that a run has the configuration and the engine that a preset and flags describe.

    Fields that a run chooses itself, such as the resets of ``reset='auto'``, are not compared.

    Raises:
        ValueError: naming the first field that differs, and both values.
    """
    from jaxdqn.cli.engine import make_engine, with_recorded_engine, without_engine_options
    from jaxdqn.cli.run import config_from, read_flags

    given = with_recorded_engine(read_flags([preset, *flags])[1])
    config = config_from(without_engine_options(given))
    engine = make_engine(given)
    now, stored = to_dict(config), to_dict(read_config(out))
    now["engine"] = engine_text(None if engine is None else engine.record())
    stored["engine"] = engine_text(read_engine(out))
    for name, value in now.items():
        if value != stored[name] and name not in _chosen_by_the_run(config, engine is not None):
            raise ValueError(
                f"{name}={value!r}: must be {stored[name]!r}, as in the run in {out}; choose "
                "another --out for a new run"
            )


def _chosen_by_the_run(config: Config, on_engine: bool) -> set[str]:
    """Return the fields that a run may store with another value than ``config`` has."""
    free = {name for name in ("chunk_iterations", "schedule_rows") if getattr(config, name) is None}
    free |= {"reset", "reset_pool"} if config.reset == "auto" else set()
    # An engine saves no replay: ``RayEngine.configure``.
    return free | ({"replay_in_checkpoint"} if on_engine else set())


def _is_complete(out: Path) -> bool:
    """Return True if the summary says that the run was not interrupted."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        return isinstance(summary, dict) and summary.get("interrupted") is False
    return False


def draw(
    run: Path, images: Path, name: str, *, video: bool = True, on: str | None = None
) -> list[Path]:
    """Write the learning curve of a run, and a GIF of one greedy episode; return the files.

    Args:
        run: directory of the run.
        images: directory of the pictures.
        name: name of the pictures, without suffix.
        video: False to write the curve only.
        on: environment that plays the episode; None for that of the run.
    """
    images.mkdir(parents=True, exist_ok=True)
    files = [images / f"{name}.png"]
    command("plot", str(run), "--out", str(files[0]))
    if video:
        files.append(images / f"{name}.gif")
        command("evaluate", str(run), *(["--on", on] if on is not None else []), "--episodes", "1",
                "--video", str(files[1]))  # fmt: skip
    return files
