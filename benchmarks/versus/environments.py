"""Virtual environments of peers, with pinned versions from the package index."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_JAX = ("jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8", "optax==0.2.8")
_GYMNAX = ("gymnax==0.0.9", "six")  # the wheel imports six without declaring it
_TORCH = ("torch==2.13.0",)

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "sb3": ("stable-baselines3==2.9.2", *_TORCH),
    "sbx": ("sbx-rl==0.28.0", *_TORCH),
    "rllib": ("ray[rllib]==2.60.0", *_TORCH),
    "rejax": ("rejax==0.1.3", "distrax==0.1.9", *_JAX, *_GYMNAX),
    "flashbax": ("flashbax==0.1.3", *_JAX),
    "torchrl": ("torchrl==0.14.1", "gymnasium[classic-control]", *_TORCH),
    "purejaxrl": ("flashbax==0.1.3", *_JAX, *_GYMNAX),
    "purejaxql": (*_JAX, *_GYMNAX),
    "cleanrl": ("stable-baselines3==2.9.2", "tyro", *_JAX, *_TORCH),
}
"""Requirements of each peer. purejaxrl, purejaxql and CleanRL are files of a checkout; their
environments contain the packages that these files import."""
_SHARED = {"sb3-host": "sb3", "sbx-host": "sbx"}
"""Peers that use the environment of another."""

_ON_JAX = ("sbx",)
"""Peers that install JAX as a dependency, without a requirement above."""
_PLUGINS = {"gpu": {"jax-cuda13-plugin": "cuda13", "jax-cuda12-plugin": "cuda12"},
            "tpu": {"libtpu": "tpu"}}  # fmt: skip
"""Extra of JAX for each package that runs it on a platform."""

Run = Callable[..., Any]


class Built(NamedTuple):
    """Virtual environment, or the reason why it is missing."""

    python: str | None
    """Its interpreter."""
    versions: tuple[str, ...] = ()
    """Installed packages, as ``pip freeze`` lists them."""
    missing: str | None = None


def jax_extra(
    platform: str, version: Callable[[str], str] = importlib.metadata.version
) -> str | None:
    """Return the extra of JAX that this interpreter uses on a platform; None on the CPU.

    Raises:
        ValueError: if no package is known for the platform.
    """
    if platform == "cpu":
        return None
    for package, extra in _PLUGINS.get(platform, {}).items():
        try:
            version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return extra
    raise ValueError(
        f"platform={platform!r}: must be one that peers can be installed for: cpu; gpu with "
        "jax[cuda12] or jax[cuda13]; tpu with jax[tpu]. Use --peer and --peer-python"
    )


def requirements_of(name: str, extra: str | None) -> tuple[str, ...]:
    """Return the requirements of a peer, with JAX for the device of jaxdqn.

    Args:
        name: name of the environment.
        extra: extra of JAX for an accelerator; None on the CPU.
    """
    requirements = REQUIREMENTS[name]
    if extra is None:
        return requirements
    if name in _ON_JAX:
        return (*requirements, f"jax[{extra}]")
    return tuple(
        each.replace("jax==", f"jax[{extra}]==") if each.startswith("jax==") else each
        for each in requirements
    )


def build_environment(
    name: str, directory: Path, run: Run = subprocess.run, *, extra: str | None = None
) -> Built:
    """Build the environment of a peer, or return the finished one.

    Args:
        name: name of the peer.
        directory: parent of all environments. The name of an environment contains the peer and a
            digest of its requirements, so that a change of version builds a new environment.
        run: function that runs a command, as ``subprocess.run``.
        extra: extra of JAX for the accelerator; None on the CPU.
    """
    name = _SHARED.get(name, name)
    requirements = requirements_of(name, extra)
    target = directory / f"{name}-{_digest(requirements)}"
    python, record = target / "bin" / "python", target / "versions.json"
    if record.is_file():
        return Built(str(python), tuple(json.loads(record.read_text())))
    shutil.rmtree(target, ignore_errors=True)  # remains of an interrupted installation
    directory.mkdir(parents=True, exist_ok=True)
    commands = (
        [sys.executable, "-m", "venv", str(target)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         *requirements],
    )  # fmt: skip
    for command in commands:
        done = run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            return Built(None, missing=f"cannot be installed: {_reason(done.stderr)}")
    freeze = run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=False)
    versions = tuple(line for line in freeze.stdout.splitlines() if line.strip())
    record.write_text(json.dumps(versions))
    return Built(str(python), versions)


def _digest(requirements: Sequence[str]) -> str:
    """Return a short digest of the requirements and the version of Python."""
    text = "\n".join((*requirements, *map(str, sys.version_info[:2])))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _reason(errors: str) -> str:
    """Return the most informative line of pip's errors: the first error, or the last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("ERROR:")]
    return found[0].removeprefix("ERROR:").strip() if found else (lines or ["no message"])[-1]
