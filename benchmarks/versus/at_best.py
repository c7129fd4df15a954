"""Time to solve CartPole-v1 and to hold it, of jaxdqn and its peers at their own best settings.

Both are judged alike: 100 greedy episodes at least 5 000 rows apart. *Solved* is the first
evaluation at 475 that 100 further episodes confirm; *held* is the tenth consecutive one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import CPU_THREADS, Process
from benchmarks.report import format_table

SOLVE_RETURN = 475.0

AT_BEST = ("purejaxrl", "purejaxql", "sb3")
"""Peers that ``peers_at_best.py`` can drive."""

FILES = {"purejaxrl": "dqn.py", "purejaxql": "pqn_gymnax.py"}
"""File of a peer that takes one."""


def start_peer(python: str, name: str, argument: str, threads: int | None) -> Process:
    """Start a peer in an interpreter that has it installed."""
    driver = Path(__file__).with_name("peers_at_best.py")
    return Process([python, "-P", str(driver), name, argument, str(SOLVE_RETURN)], threads)


def learner_result(
    seed: int, evaluations: Sequence[dict[str, Any]], solve_return: float = SOLVE_RETURN
) -> dict[str, Any]:
    """Return the result of a learner from its evaluations, judged as a run of jaxdqn is.

    Args:
        seed: of the learner.
        evaluations: ``rows``, ``seconds``, ``return_mean`` and ``fresh_mean`` of each; the last is
            None if there was no confirmation.
        solve_return: return to reach and to hold.
    """
    from jaxdqn.run.holding import record_evaluation, stability
    from jaxdqn.run.progress import Progress

    progress = Progress.of(1)
    for evaluation in evaluations:
        progress.totals = {"rows": evaluation["rows"]}
        fresh, seconds = evaluation["fresh_mean"], evaluation["seconds"]
        refuted = (0,) if fresh is not None and fresh < solve_return else ()
        if progress.solved_at[0] is None and fresh is not None and not refuted:
            progress.solved_at[0] = seconds
        means = [evaluation["return_mean"]]
        record_evaluation(progress, means, solve_return, seconds, refuted)
    return {
        "seed": seed,
        "seconds_to_solve": progress.solved_at[0],
        "seconds_to_hold": progress.held_at[0],
        "rows_to_hold": progress.held_rows[0],
        "learning_stability": stability(progress.passed[0]),
        "eval_return_mean": evaluations[-1]["return_mean"],
        "rows": evaluations[-1]["rows"],
        "seconds": evaluations[-1]["seconds"],
    }


def train_peer(process: Process, seed: int) -> dict[str, Any]:
    """Train a learner of a peer for its complete budget; return its result or ``missing``."""
    process.send(f"seed {seed}")
    evaluations: list[dict[str, Any]] = []
    while not evaluations or not evaluations[-1]["spent"]:
        answer = process.measure()
        if "missing" in answer:
            return answer
        evaluations.append(answer)
    return learner_result(seed, evaluations)


def train_jaxdqn(seed: int) -> dict[str, Any]:
    """Train the ``cartpole`` preset for its complete budget, in a process as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--seed", str(seed)]
        command += ["--stop-when", "never", "--checkpoint-every", "0", "--out", str(out)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        summary = json.loads((out / "summary.json").read_text())
    fields = ("seconds_to_solve", "seconds_to_hold", "rows_to_hold", "learning_stability",
              "eval_return_mean", "rows")  # fmt: skip
    seconds = summary["train_seconds"] + summary["eval_seconds"]
    return {"seed": seed, **{name: summary[name] for name in fields}, "seconds": seconds}


def compare_at_best(
    peers: Sequence[tuple[str, str]],
    seeds: int,
    python: str | Mapping[str, str],
    threads: int | None,
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train jaxdqn and the peers on the same seeds, one seed of each in turn.

    Args:
        peers: names and arguments.
        seeds: number of seeds of each.
        python: interpreter that has the peers installed, or one for each of them by name.
        threads: of XLA and PyTorch in the peers on CPU; None for one per core.
        report: takes a line for each result.

    Returns:
        One record for each: its name and the results of its seeds, or ``missing``.
    """
    records: list[dict[str, Any]] = [{"name": "jaxdqn", "cpu_threads": CPU_THREADS, "seeds": []}]
    processes: list[Process | None] = [None]
    try:
        for name, argument in peers:
            interpreter = python if isinstance(python, str) else python[name]
            process = start_peer(interpreter, name, argument, threads)
            processes.append(process)
            records.append({"name": name, "cpu_threads": threads, **process.receive(), "seeds": []})
        for seed in range(seeds):
            for record, running in zip(records, processes, strict=True):
                if "missing" in record:
                    continue
                result = train_jaxdqn(seed) if running is None else train_peer(running, seed)
                if "missing" in result:
                    record.update(result)
                    continue
                record["seeds"].append(result)
                report(f"{record['name']}, seed {seed}: {_described(result)}")
    finally:
        for started in processes:
            if started is not None:
                started.close()
    return records


def at_best_table(records: Sequence[dict[str, Any]]) -> str:
    """Format one row for each library; a time is the median over seeds, ``-`` if half lack it."""
    rows = []
    for record in records:
        results = record["seeds"]
        if not results:
            continue
        at_end = sum(result["eval_return_mean"] >= SOLVE_RETURN for result in results)
        share = statistics.mean(result["learning_stability"] for result in results)
        rows.append(
            [
                record["name"],
                *(_reached(results, f"seconds_to_{verb}") for verb in ("solve", "hold")),
                f"{at_end} of {len(results)}",
                f"{share:.0%}",
            ]
        )
    headers = ["library", "solved: s, seeds", "held: s, seeds", ">= 475 at the end", "stability"]
    return format_table(headers, rows)


def _reached(results: Sequence[dict[str, Any]], name: str) -> str:
    """Return the median over all seeds, and how many have the result, as text."""
    known = [result[name] for result in results if result[name] is not None]
    missing = [float("inf")] * (len(results) - len(known))
    median = statistics.median(known + missing)
    text = "-" if median == float("inf") else f"{median:.2f}"
    return f"{text}, {len(known)} of {len(results)}"


def _described(result: dict[str, Any]) -> str:
    texts = [
        f"{goal} after {seconds:.2f} s" if seconds is not None else f"not {goal}"
        for goal, seconds in (
            ("solved", result["seconds_to_solve"]),
            ("held", result["seconds_to_hold"]),
        )
    ]
    return f"{', '.join(texts)}, {result['eval_return_mean']:.1f} at the end"
