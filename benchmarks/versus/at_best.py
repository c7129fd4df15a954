"""Time to solve and to hold CartPole-v1, for jaxdqn and its peers at their own best settings.

All libraries are evaluated in the same way: 100 greedy episodes, at least 5 000 rows apart.
*Solved* is the first evaluation with a return of 475 that 100 fresh episodes confirm. *Held* is the
tenth consecutive evaluation with this return.
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
from benchmarks.versus.matched import device_mismatch

SOLVE_RETURN = 475.0

AT_BEST = ("purejaxrl", "purejaxql", "sb3", "rllib")
"""Peers that ``peers_at_best.py`` can drive. RLlib has the settings of the matched workload, not
its best settings; it is compared with ``ON_RAY``."""

ON_RAY = "jaxdqn-ray"
"""Ape-X of jaxdqn with two actors, at the workload of RLlib's DQN with two environment runners."""

UNTIL_SOLVED = ("rllib", ON_RAY)
"""Libraries that train only until they solve the environment, not for their complete budget."""

FILES = {"purejaxrl": "dqn.py", "purejaxql": "pqn_gymnax.py"}
"""Files of the peers that need one."""


def start_peer(python: str, name: str, argument: str, threads: int | None) -> Process:
    """Start a peer in an interpreter where it is installed."""
    driver = Path(__file__).with_name("peers_at_best.py")
    return Process([python, "-P", str(driver), name, argument, str(SOLVE_RETURN)], threads)


def learner_result(
    seed: int, evaluations: Sequence[dict[str, Any]], solve_return: float = SOLVE_RETURN
) -> dict[str, Any]:
    """Return the result of a learner from its evaluations, by the rules for runs of jaxdqn.

    Args:
        seed: seed of the learner.
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


def train_peer(
    process: Process, seed: int, max_seconds: float | None = None, until_solved: bool = False
) -> dict[str, Any]:
    """Train a learner of a peer for its budget; return its result or ``missing``.

    Args:
        process: process of the peer.
        seed: seed of the learner.
        max_seconds: time limit in seconds, including evaluations; None for the complete budget of
            rows.
        until_solved: True to stop at the first confirmed evaluation.
    """
    process.send(f"seed {seed}")
    evaluations: list[dict[str, Any]] = []
    limit = float("inf") if max_seconds is None else max_seconds
    while True:
        answer = process.measure()
        if "missing" in answer:
            return answer
        evaluations.append(answer)
        result = learner_result(seed, evaluations)
        solved = until_solved and result["seconds_to_solve"] is not None
        if answer["spent"] or answer["seconds"] >= limit or solved:
            return result


_START_SECONDS = 60.0
"""Seconds of a run on Ray before training: the start of Ray and its workers, and compilation."""

RAY_OPTIONS = (
    *("--engine", "ray", "--actors", "2", "--replay", "prioritized", "--rollout-length", "1"),
    *("--num-envs", "10", "--gradient-steps", "1", "--batch-size", "128", "--n-step", "1"),
    *("--hidden-sizes", "120", "84", "--learning-rate", "2.5e-4", "--loss", "squared"),
    *("--learning-rate-schedule", "constant", "--target-period", "50"),
    *("--epsilon-schedule", "constant", "--epsilon-end", "0.05", "--no-layer-norm"),
    *("--replay-capacity", "10000", "--warmup-rows", "1000", "--total-rows", "500000"),
    *("--log-every", "5000", "--eval-every", "5000", "--stop-when", "solved"),
)
"""Options of the matched workload on Ray."""


def train_jaxdqn(
    seed: int, options: Sequence[str] = ("--stop-when", "never"), max_seconds: float | None = None
) -> dict[str, Any]:
    """Train the ``cartpole`` preset in a new process, by the command that a user would run.

    Args:
        seed: seed of the run.
        options: additional options of ``jaxdqn run``; by default those for the complete budget.
        max_seconds: seconds of training and evaluation; None for the complete budget of rows.
    """
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--seed", str(seed)]
        command += [*options, "--checkpoint-every", "0", "--out", str(out)]
        if max_seconds is not None:  # the limit of a run includes its start, which is added here
            command += ["--max-seconds", str(max_seconds + _START_SECONDS)]
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
    max_seconds: float | None = None,
    *,
    device_kind: str,
) -> list[dict[str, Any]]:
    """Train jaxdqn and the peers on the same seeds, alternating between libraries.

    Args:
        peers: names and arguments; with rllib, jaxdqn on Ray is trained too.
        seeds: number of seeds of each library.
        python: interpreter in which the peers are installed, or one interpreter per peer by name.
        threads: threads of XLA and PyTorch in the peers on CPU; None for one per core.
        report: receives a line for each result.
        max_seconds: time limit of a learner of RLlib and of jaxdqn on Ray; None for the budget in
            rows.
        device_kind: kind of the device of jaxdqn.

    Returns:
        One record per library: its name and the results of its seeds, or ``missing``.
    """
    ours = ["jaxdqn", *([ON_RAY] if "rllib" in dict(peers) else [])]
    records: list[dict[str, Any]] = [
        {"name": name, "cpu_threads": CPU_THREADS, "device_kind": device_kind, "seeds": []}
        for name in ours
    ]
    processes: list[Process | None] = [None] * len(ours)
    try:
        for name, argument in peers:
            interpreter = python if isinstance(python, str) else python[name]
            process = start_peer(interpreter, name, argument, threads)
            processes.append(process)
            ready = with_jax_device(name, process.receive(), device_kind)
            records.append({"name": name, "cpu_threads": threads, **ready, "seeds": []})
        for seed in range(seeds):
            for record, running in zip(records, processes, strict=True):
                if "missing" in record:
                    continue
                result = _train(record["name"], running, seed, max_seconds)
                if "missing" in result:
                    record.update(result)
                    continue
                record["seeds"].append(result)
                within = max_seconds if record["name"] in UNTIL_SOLVED else None
                report(f"{record['name']}, seed {seed}: {_described(result, within)}")
    finally:
        for started in processes:
            if started is not None:
                started.close()
    return records


def with_jax_device(name: str, ready: dict[str, Any], device_kind: str) -> dict[str, Any]:
    """Return the first message of a peer; a JAX library on another device is ``missing``.

    Stable-Baselines3 and RLlib choose the CPU, which is faster for networks of this size.
    """
    if name not in FILES or "missing" in ready:
        return ready
    mismatch = device_mismatch(device_kind, ready.get("device_kind"))
    return ready if mismatch is None else {**ready, "missing": mismatch}


def _train(
    name: str, running: Process | None, seed: int, max_seconds: float | None
) -> dict[str, Any]:
    """Train one learner of a library; ``running`` is the process of a peer."""
    until_solved = name in UNTIL_SOLVED
    limit = max_seconds if until_solved else None
    if running is not None:
        return train_peer(running, seed, limit, until_solved)
    return train_jaxdqn(seed, RAY_OPTIONS, limit) if until_solved else train_jaxdqn(seed)


def at_best_table(records: Sequence[dict[str, Any]]) -> str:
    """Format one row for each library; a time is the median over seeds."""
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
    """Format the median over all seeds, and the number of seeds that reached the goal.

    If half of the seeds did not reach it, the median is ``> S``, where S is the shortest training
    time of these seeds in seconds.
    """
    known = [result[name] for result in results if result[name] is not None]
    lacking = [result["seconds"] for result in results if result[name] is None]
    median = statistics.median(known + [float("inf")] * len(lacking))
    text = f"> {min(lacking):.0f}" if median == float("inf") else f"{median:.2f}"
    return f"{text}, {len(known)} of {len(results)}"


def _described(result: dict[str, Any], max_seconds: float | None = None) -> str:
    within = "" if max_seconds is None else f" within {max_seconds:g} s"
    texts = [
        f"{goal} after {seconds:.2f} s" if seconds is not None else f"not {goal}{within}"
        for goal, seconds in (
            ("solved", result["seconds_to_solve"]),
            ("held", result["seconds_to_hold"]),
        )
    ]
    return f"{', '.join(texts)}, {result['eval_return_mean']:.1f} at the end"
