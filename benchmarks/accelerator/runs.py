"""Complete runs: time to solve CartPole, time to a score on Breakout, and PQN on each game."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.accelerator.plan import Cell, Sizes
from benchmarks.configs import BREAKOUT
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import preset
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run.program_cache import compiled_programs, static_run
from jaxdqn.run.runner import run

PUBLISHED_BREAKOUT = 10.0
"""Return of DQN on Breakout after five million frames (Young and Tian 2019)."""

_FIELDS = (
    "solved", "seconds_to_solve", "seconds_to_hold", "train_seconds", "eval_seconds",
    "rows", "env_steps", "env_steps_per_second", "gradient_steps_per_second",
    "eval_return_mean", "best_eval_return_mean", "ended_by",
)  # fmt: skip


def solve_cells(sizes: Sizes) -> list[Cell]:
    """Return a cell for each seed of the preset ``cartpole``, until it has held the return."""
    base = preset("cartpole")
    if sizes.run_rows is not None:
        base = replace(base, total_rows=sizes.run_rows, eval_episodes=4)
    return [_run_cell(f"seed {seed}", replace(base, seed=seed)) for seed in range(sizes.seeds)]


def score_cells(sizes: Sizes) -> list[Cell]:
    """Return a cell for each algorithm: train on Breakout up to the published score."""
    fields: dict[str, Any] = {"solve_return": PUBLISHED_BREAKOUT, "stop_when": "solved"}
    bases = {
        "fast": preset("fast", env=BREAKOUT, **fields),
        "pqn": preset("pqn", env=BREAKOUT, **{**fields, **dict(sizes.shrunk)}),
    }
    if sizes.run_rows is not None:
        small = {"total_rows": sizes.run_rows, "eval_episodes": 2}
        bases["fast"] = replace(bases["fast"], warmup_rows=1_024, **small)
        bases["pqn"] = replace(bases["pqn"], log_every=2_048, **small)
    return [_run_cell(name, config) for name, config in bases.items()]


def pqn_cells(sizes: Sizes) -> list[Cell]:
    """Return a cell for each MinAtar game: PQN as published, over the budget of frames."""
    cells = []
    for game in sizes.games:
        small = {"num_envs": 16, "log_every": 64, "eval_episodes": 2} if sizes.shrunk else {}
        fields = {**dict(sizes.shrunk), **small}
        config = preset("pqn", env=game, total_rows=sizes.frames, **fields)
        # Ten evaluations of 100 episodes; their time is recorded separately.
        cells.append(_run_cell(game, replace(config, eval_every=max(1, sizes.frames // 10))))
    return cells


def _run_cell(name: str, config: Config) -> Cell:
    compile_seconds: list[float] = []

    def prepare() -> Callable[[], Any]:
        """Leave the programs of the run in the process, where ``run`` finds them."""
        keys, timed = learner_keys(config), replace(config, max_seconds=1.0)
        with jax.transfer_guard("allow"):  # as in ``run``, which else would compile again
            static = static_run(config, keys, dict.fromkeys(_PARTS))

        def compile_all() -> None:
            started = time.perf_counter()
            compiled_programs(static, timed, keys)
            compile_seconds.append(time.perf_counter() - started)

        return compile_all

    def measure(seconds: float) -> dict[str, Any]:
        return {**measure_run(config, seconds), "compile_seconds": sum(compile_seconds)}

    return Cell(name, measure, prepare)


_PARTS = (
    "environment", "network", "optimizer", "replay", "explore", "loss", "learning", "agent",
)  # fmt: skip
"""Custom parts of ``run``; there are none."""


def measure_run(config: Config, seconds: float) -> dict[str, Any]:
    """Train to the end of the budget, or for ``seconds``; return part of the summary.

    ``complete`` is False if the time limit ended the run; its times then cover part of the budget.
    """
    summary = run(replace(config, max_seconds=max(1.0, seconds))).summary
    found = {name: summary.get(name) for name in _FIELDS}
    return {
        "env": config.env,
        "algorithm": config.algorithm,
        "seed": config.seed,
        **found,
        "budget_rows": config.total_rows,
        "complete": not summary["interrupted"],
    }
