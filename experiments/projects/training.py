"""Runs of a project: execute the commands of its page in order, and read their results."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.config.config import Config

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

    A directory whose run has ended is read and not trained again.
    """
    summary = out / "summary.json"
    if not summary.exists():
        resume = ["--resume"] if (out / "config.json").exists() else [preset, *flags]
        command("run", *resume, "--out", str(out))
    found = json.loads(summary.read_text(encoding="utf-8"))
    return {name: found.get(name) for name in FIELDS}


def draw(run: Path, images: Path, name: str, *, video: bool = True) -> list[Path]:
    """Write the learning curve of a run, and a GIF of one greedy episode; return the files."""
    images.mkdir(parents=True, exist_ok=True)
    files = [images / f"{name}.png"]
    command("plot", str(run), "--out", str(files[0]))
    if video:
        files.append(images / f"{name}.gif")
        command("evaluate", str(run), "--episodes", "1", "--video", str(files[1]))
    return files
