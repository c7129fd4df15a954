"""Study of settings that hold the solve return: ``python -m benchmarks.held``.

Every setting is trained on the same seeds for its complete budget. Results are appended to a file
as runs end, and a repeated command trains only runs that are missing in the file.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import check_writable, describe, format_markdown, stamp
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.errors import RunFailed

LARGE_RING: dict[str, Any] = {"replay_capacity": 102_400}
FIVE_STEPS: dict[str, Any] = {"n_step": 5, "epsilon_end": 0.01, **LARGE_RING}
COSINE: dict[str, Any] = {"learning_rate_schedule": "cosine"}

FORMER: dict[str, Any] = {
    "total_rows": 600_000,
    "batch_size": 128,
    "n_step": 1,
    "hidden_sizes": (64,),
    "learning_rate": 2e-3,
    "learning_rate_schedule": "constant",
    "target_period": 20,
    "epsilon_end": 0.05,
    "replay_capacity": 19_200,
    "log_every": 6_400,
    "eval_every": 6_400,
}
"""Settings of the ``cartpole`` preset before the study; every other setting changes these."""

SETTINGS: dict[str, dict[str, Any]] = {
    "former preset": {},
    "linear learning rate": {"learning_rate_schedule": "linear"},
    "cosine learning rate": COSINE,
    "Polyak target, 0.05": {"target_tau": 0.05},
    "Polyak target, 0.01": {"target_tau": 0.01},
    "target period 100": {"target_period": 100},
    "double": {"double": True},
    "3 steps": {"n_step": 3},
    "5 steps": {"n_step": 5},
    "batch 256": {"batch_size": 256},
    "ring 51 200": {"replay_capacity": 51_200},
    "ring 102 400": LARGE_RING,
    "gradient norm 10": {"clip_norm": 10.0},
    "layer norm": {"layer_norm": True},
    "Huber loss": {"loss": "huber"},
    "final epsilon 0.01": {"epsilon_end": 0.01},
    "final epsilon 0.1": {"epsilon_end": 0.1},
    "3 steps, epsilon 0.01": {"n_step": 3, "epsilon_end": 0.01},
    "3 steps, layer norm": {"n_step": 3, "layer_norm": True},
    "3 steps, batch 256": {"n_step": 3, "batch_size": 256},
    "3 steps, double": {"n_step": 3, "double": True},
    "3 steps, ladder of epsilon": {"n_step": 3, "epsilon_end": 0.3, "epsilon_ladder": 7.0},
    "3 steps, epsilon 0.01, ring 102 400, cosine": {**FIVE_STEPS, **COSINE, "n_step": 3},
    "5 steps, epsilon 0.01, ring 51 200, cosine": {
        **FIVE_STEPS,
        **COSINE,
        "replay_capacity": 51_200,
    },
    "5 steps, epsilon 0.01, ring 102 400, cosine": {**FIVE_STEPS, **COSINE},
    "the same, learning rate 4e-3": {**FIVE_STEPS, **COSINE, "learning_rate": 4e-3},
    "the same, Polyak target 0.05": {**FIVE_STEPS, **COSINE, "target_tau": 0.05},
    "the same, layer norm": {**FIVE_STEPS, **COSINE, "layer_norm": True},
    "layer norm, learning rate 4e-3": {
        **FIVE_STEPS,
        **COSINE,
        "layer_norm": True,
        "learning_rate": 4e-3,
    },
    "the preset: the same, 64 environments, 8 steps, learning rate 6e-3, ring 51 200": {
        **FIVE_STEPS,
        **COSINE,
        "num_envs": 64,
        "n_step": 8,
        "layer_norm": True,
        "learning_rate": 6e-3,
        "replay_capacity": 51_200,
        "warmup_rows": 2_048,
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    out: str = "held.jsonl"
    """File of results, one line per run; runs in the file are not repeated."""
    only: tuple[str, ...] = ()
    """Names of settings or of presets; by default all settings of the study."""
    seeds: int = 4
    """Seeds of each setting, from 0."""


def configuration(name: str, seed: int) -> Any:
    """Return the configuration of a setting of the study, or of a preset.

    Raises:
        ValueError: if the name is neither.
    """
    from jaxdqn.config.presets import PRESETS, preset

    if name not in SETTINGS and name not in PRESETS:
        raise ValueError(f"only={name!r}: must be a setting of the study or a preset")
    settings = {**FORMER, **SETTINGS[name]} if name in SETTINGS else {}
    base = "dqn" if name in SETTINGS else name
    return preset(base, **settings, seed=seed, checkpoint_every=0, stop_when="never")


def train(name: str, seed: int) -> dict[str, Any]:
    """Train a setting on a seed; return its results and its evaluations.

    Raises:
        RunFailed: if a signal stopped the run, because its result would not be comparable.
    """
    from jaxdqn.monitoring.loggers import Logger
    from jaxdqn.run.runner import run

    evaluations: list[dict[str, Any]] = []

    def log(kind: str, record: dict[str, Any]) -> None:
        if kind == "evaluation" and record["purpose"] == "evaluate":
            evaluations.append(record)

    logger = Logger(log=log, close=lambda: None)
    summary = run(configuration(name, seed), loggers=[logger]).summary
    if summary["interrupted"]:
        raise RunFailed(
            f"{name}, seed {seed}: stopped by {summary['ended_by']}; repeat the command"
        )
    fields = ("seed", "env", "rows", "train_seconds", "eval_seconds", "solve_return",
              "seconds_to_solve", "seconds_to_hold", "rows_to_hold", "learning_stability",
              "eval_return_mean", "best_eval_return_mean")  # fmt: skip
    returns = [round(record["return_mean"], 1) for record in evaluations]
    return {"setting": name, **{field: summary[field] for field in fields}, "returns": returns}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Format the results by setting, with medians over seeds for times."""
    by_setting: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        by_setting.setdefault(result["setting"], []).append(result)
    rows = []
    for name, runs in by_setting.items():
        shares = [run["learning_stability"] for run in runs if run["solve_return"] is not None]
        at_end = sum(run["eval_return_mean"] >= (run["solve_return"] or 0) for run in runs)
        late = f"{statistics.mean(shares):.3f}" if shares else "-"
        rows.append(
            [
                name,
                len(runs),
                _median(runs, "seconds_to_solve", ".2f"),
                f"{sum(run['seconds_to_hold'] is not None for run in runs)}",
                _median(runs, "seconds_to_hold", ".2f"),
                _median(runs, "rows_to_hold", ",.0f"),
                str(at_end) if shares else "-",
                late,
                f"{statistics.median(map(_seconds, runs)):.2f}",
            ]
        )
    headers = ["setting", "seeds", "s to solve", "held by", "s to hold", "rows to hold",
               "solved at the end", "stability", "s of the budget"]  # fmt: skip
    return format_markdown(headers, rows)


def late_drop(returns: Sequence[float]) -> float:
    """Return the relative drop from the best to the worst evaluation of the last third."""
    best, late = max(returns), returns[-max(1, len(returns) // 3) :]
    return (best - min(late)) / abs(best)


def _seconds(run: Mapping[str, Any]) -> float:
    return run["train_seconds"] + run["eval_seconds"]


def _median(runs: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    """Return the median over all runs as text; ``-`` if half of them lack the value."""
    values = [float("inf") if run[name] is None else run[name] for run in runs]
    median = statistics.median(values)
    return "-" if median == float("inf") else format(median, form)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.held", description=__doc__)
    check_writable(flags.out)
    if flags.seeds < 1:
        raise ValueError(f"seeds={flags.seeds}: must be at least 1")
    names = flags.only or tuple(SETTINGS)
    for name in names:
        configuration(name, 0)
    file = Path(flags.out)
    lines = file.read_text().splitlines() if file.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(result["setting"], result["seed"]) for result in results}
    stamped = stamp()
    print(describe(stamped))
    for name in names:
        for seed in range(flags.seeds):
            if (name, seed) not in done:
                results.append({**train(name, seed), "stamp": stamped})
                with file.open("a") as opened:
                    print(json.dumps(results[-1]), file=opened)
    print(table([result for result in results if result["setting"] in names]))


if __name__ == "__main__":
    sys.exit(main())
