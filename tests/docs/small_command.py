"""Run a ``jaxdqn`` command of the pages at small size: ``python -m tests.docs.small_command ...``.

The rule, which CONTRIBUTING.md states: a run has at most 4,000 rows, chunks and a warm-up of at
most 2,000, a replay of at most about 16,000 rows, evaluations of 3 episodes, Atari games of 400
frames, and virtual devices where it names several. Other commands play 3 episodes. A study that is
not small only lists its cells. ``compare`` is parsed, and so is a command that needs a package
which is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from jaxdqn.__main__ import COMMANDS, main
from jaxdqn.cli import run
from jaxdqn.cli.parts import take_env_args, take_references
from jaxdqn.config.host_envs import is_atari
from jaxdqn.config.suite_envs import OWN_SUITE
from jaxdqn.storage.directory import is_run, read_config

PREPARED = ".prepared"
"""File in a run directory that the test has made, which a command may replace."""

_WITHOUT = ".without-a-package"

_ROWS, _ATARI_ROWS, _CHUNK, _REPLAY, _EPISODES, _FRAMES = 4_000, 2_200, 2_000, 16_000, 3, 400
_PACKAGES = {
    "--wandb": "wandb", "--engine": "ray", "onnx": "jax2onnx", "navix:": "navix",
    "craftax:": "craftax", "octax:": "octax", "envpool:": "envpool", "driving": "envpool",
    "MinAtar/": "minatar",
}  # fmt: skip


def missing_package(arguments: list[str]) -> str | None:
    """Return the package that a command needs and that is not installed."""
    for mark, package in _PACKAGES.items():
        named = any(word.startswith(mark) for word in arguments)
        if named and importlib.util.find_spec(package) is None:
            return package
    return None


def shrunk(arguments: list[str]) -> list[str]:
    """Return the arguments of a command at small size; the last of two equal flags counts."""
    name, rest = arguments[0], arguments[1:]
    if name == "run" and "--help" not in rest and "--help-all" not in rest:
        return [name, *rest, *_small_run(rest)]
    if name == "evaluate":
        return [name, *rest, "--episodes", str(_EPISODES)]
    if name == "study" and "--report" not in rest:
        small = {"CartPole-v1", "--environment"} & set(rest) and "--definition" not in rest
        sizes = ["--total-rows", str(_ROWS), "--seeds", "2", "--set", "eval_episodes=3"]
        return [name, *rest, *(sizes if small else ["--dry-run"])]
    return arguments


def _small_run(rest: list[str]) -> list[str]:
    _, flags = run.read_flags(take_env_args(take_references(rest)[0]))
    if flags.resume and flags.out is not None and is_run(flags.out):
        # The stored run is small already; a larger budget adds a chunk.
        stored = read_config(flags.out)
        more = flags.total_rows > stored.total_rows
        return ["--total-rows", str(stored.total_rows + _CHUNK)] if more else []
    config = run.config_from(flags)
    frames = is_atari(config.env) or config.env.startswith(f"{OWN_SUITE}:")
    rows = max(_ATARI_ROWS if frames else _ROWS, config.rows_per_iteration)
    if flags.profile is not None:
        rows = _CHUNK * (flags.profile + 2)
    sizes = {"total_rows": rows, "log_every": _CHUNK, "eval_episodes": _EPISODES}
    if config.algorithm == "dqn":
        sizes["warmup_rows"] = _CHUNK
        unit = config.num_envs * config.rollout_length
        sizes["replay_capacity"] = -(-_REPLAY // unit) * unit
    words = []
    for field, size in sizes.items():
        if getattr(config, field) > size:
            words += [f"--{field.replace('_', '-')}", str(size)]
    if frames:
        os.environ.pop("XLA_FLAGS", None)  # convolutions without optimisation take minutes
    if is_atari(config.env):
        words += ["--env-arg", f"max_num_frames_per_episode={_FRAMES}"]
    if config.devices > 1 and flags.virtual_devices is None:
        words += ["--virtual-devices", str(config.devices)]
    return words


def replace_prepared(arguments: list[str]) -> None:
    """Remove a prepared run directory that a command is to write."""
    if arguments[0] == "run" and "--out" in arguments:
        out = Path(arguments[arguments.index("--out") + 1])
        starts = not arguments[1].startswith("-") or "--resume" not in arguments
        if starts and (out / PREPARED).exists():
            shutil.rmtree(out)


def _parse_only(arguments: list[str]) -> int:
    from tests.docs.test_commands import check

    check("jaxdqn", arguments)
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[0] in COMMANDS:
        replace_prepared(given)
        package = missing_package(given)
        if package is not None:
            Path(_WITHOUT).touch()
        # What follows in the block may need the run that was not made.
        if Path(_WITHOUT).exists() or given[0] == "compare":
            print("parsed only:", *given)
            sys.exit(_parse_only(given))
        given = shrunk(given)
    print("jaxdqn", *given, file=sys.stderr)
    sys.exit(main(given))
