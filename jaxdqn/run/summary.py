"""Summary of a run: configuration, hardware, software versions and results."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import jax

from jaxdqn import __version__
from jaxdqn.config.config import Config
from jaxdqn.envs.vector.atari_scores import human_normalized
from jaxdqn.monitoring.records import learner_identity
from jaxdqn.run.holding import stability
from jaxdqn.run.machine import machine
from jaxdqn.run.progress import Progress
from jaxdqn.storage.jsonl import Record

N = TypeVar("N", int, float)


def identity(config: Config, preset: str | None) -> Record:
    """Return the fields of a summary that are known before the run starts."""
    return {
        "env": config.env,
        "preset": preset,
        "algorithm": algorithm(config),
        "seed": config.seed,
        "devices": config.devices,
        "processes": jax.process_count(),
        "mapping": mapping_of(config),
        "device_kind": jax.devices()[0].device_kind,
        "machine": machine(),
        "versions": dict(_versions()),
    }


@functools.cache
def _versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that determine the results."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "jaxdqn": _own_version(),
    }


def results(
    config: Config, progress: Progress, fresh: Record | None, at_epsilon: Record | None = None
) -> Record:
    """Return the results of a run that has been evaluated.

    Args:
        config: configuration of the run.
        progress: progress at the end of the run.
        fresh: evaluation of the best parameters over fresh episodes; None if the run was stopped.
        at_epsilon: epsilon-greedy evaluation of the best parameters, epsilon ``EPSILON``; None
            unless few episodes of ``fresh`` were distinct.
    """
    last, best = progress.last, progress.best
    assert last is not None
    assert best is not None
    return {
        **progress.totals,
        "train_seconds": progress.train_seconds,
        "eval_seconds": progress.eval_seconds,
        "env_steps_per_second": progress.totals["env_steps"] / progress.train_seconds,
        "gradient_steps_per_second": progress.totals["gradient_steps"] / progress.train_seconds,
        "eval_return_mean": last["return_mean"],
        "eval_return_std": last["return_std"],
        "eval_episodes": config.eval_episodes,
        "eval_epsilon": config.eval_epsilon,
        "eval_terminated_share": last.get("terminated_share"),
        "eval_distinct_episodes": last.get("distinct_episodes"),
        "best_eval_return_mean": best["return_mean"],
        "best_eval_return_std": best["return_std"],
        "best_eval_rows": best["rows"],
        "best_fresh_return_mean": None if fresh is None else fresh["return_mean"],
        "best_fresh_terminated_share": None if fresh is None else fresh.get("terminated_share"),
        "best_fresh_distinct_episodes": None if fresh is None else fresh["distinct_episodes"],
        "best_return_mean_at_epsilon": None if at_epsilon is None else at_epsilon["return_mean"],
        **_human_normalized(config.env, progress, fresh),
        "solve_return": config.solve_return,
        "solved": None not in progress.solved_at,
        "seconds_to_solve": _last(progress.solved_at),
        "held": None not in progress.held_at,
        "seconds_to_hold": _last(progress.held_at),
        "rows_to_hold": _last(progress.held_rows),
        "learning_stability": _mean(stability(passed) for passed in progress.passed),
        "skipped_gradient_steps": sum(progress.skipped_gradient_steps),
        "rollbacks": progress.rollbacks,
        **({"env_restarts": progress.env_restarts} if config.restart_envs else {}),
        **({} if config.learners == 1 else _learner_results(config, progress, last, best)),
    }


def _learner_results(config: Config, progress: Progress, last: Record, best: Record) -> Record:
    """Return the results of each learner of a population."""
    learners = [
        {
            **learner_identity(config, index),
            "eval_return_mean": last["learners"][index],
            "best_eval_return_mean": progress.best_returns[index],
            "seconds_to_solve": progress.solved_at[index],
            "seconds_to_hold": progress.held_at[index],
            "rows_to_hold": progress.held_rows[index],
            "learning_stability": stability(progress.passed[index]),
            "diverged_at_chunk": progress.diverged_at[index],
            "skipped_gradient_steps": progress.skipped_gradient_steps[index],
        }
        for index in range(config.learners)
    ]
    return {
        "learners_solved": sum(seconds is not None for seconds in progress.solved_at),
        "learners_held": sum(seconds is not None for seconds in progress.held_at),
        "best_learner": best["learner"],
        "last_learner": last["leader"],
        "learners": learners,
    }


def _human_normalized(env: str, progress: Progress, fresh: Record | None) -> Record:
    """Return the human-normalised scores; {} if the environment has no known human score."""
    assert progress.last is not None
    assert progress.best is not None
    best = progress.best if fresh is None else fresh
    last_score = human_normalized(env, progress.last["return_mean"])
    best_score = human_normalized(env, best["return_mean"])
    if last_score is None:
        return {}
    return {"human_normalized_score": last_score, "best_human_normalized_score": best_score}


def _last(reached: Sequence[N | None]) -> N | None:
    """Return the seconds or rows until the last learner reached a goal; None unless all did."""
    times = [time for time in reached if time is not None]
    return max(times) if len(times) == len(reached) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def mapping_of(config: Config) -> str:
    """Return the mapping as text: ``none``, ``shard_map``, ``population of 4, shard_map``."""
    names = []
    if config.learners > 1:
        names.append(f"population of {config.learners}")
    if config.devices > 1:
        names.append(config.mapping if config.learners == 1 else "shard_map")
    if config.model_devices > 1:
        names.append(f"{config.model_devices}-way model")
    return ", ".join(names) or "none"


def algorithm(config: Config) -> str:
    """Return the algorithm's name with its variants: ``dqn``, ``double_dueling_c51_3step``."""
    bases = {
        "huber": "dqn",
        "squared": "dqn",
        "categorical": "c51",
        "quantile": "qr_dqn",
        "implicit_quantile": "iqn",
    }
    if config.algorithm == "pqn":
        return "pqn"
    parts = {
        config.recurrent: config.recurrent != "none",
        "noisy": config.noisy,
        "prioritized": config.replay == "prioritized",
        "double": config.double,
        "dueling": config.dueling,
        config.bootstrap: config.bootstrap != "greedy",
    }
    name = "_".join(
        [part for part, used in parts.items() if used] + [bases.get(config.loss, config.loss)]
    )
    return name if config.n_step == 1 else f"{name}_{config.n_step}step"


def _own_version() -> str:
    """Return the version of the installed package, or of the source tree if not installed."""
    try:
        return version("jaxdqn")
    except PackageNotFoundError:
        return __version__
