"""What the host does between chunks: it counts, logs, evaluates, and decides when to end."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

import jax
import numpy as np

from jaxdqn import __version__
from jaxdqn.config import Config
from jaxdqn.evaluation import EvalInfo
from jaxdqn.loggers import Logger, Record
from jaxdqn.signals import Asked
from jaxdqn.types import Array, Counter, Counters, Metrics, Params, TrainState, counter_int


class RunKeys(NamedTuple):
    """The independent streams of randomness of a run."""

    train: Array
    evaluate: Array
    """The same episodes at every evaluation, so that differences are the policy's."""
    confirm: Array
    """Folded with a count: fresh episodes every time."""


class Programs(NamedTuple):
    """Compiled ahead, so that no clock of a run measures compilation."""

    init: Callable[[Array], TrainState]
    chunk: Callable[[TrainState], tuple[TrainState, tuple[Metrics, Counters]]]
    """Donates the state; the counters are those of the new state."""
    evaluate: Callable[[Params, Array, np.int32], EvalInfo]
    """``evaluate(params, key, count)``; consumes ``key`` folded with ``count``."""
    copy: Callable[[Params], Params]


class HostLoop:
    """A run in progress as the host sees it: clocks, totals, the best parameters so far."""

    def __init__(
        self, config: Config, programs: Programs, keys: RunKeys, loggers: Sequence[Logger]
    ) -> None:
        self._config, self._programs, self._keys = config, programs, keys
        self._loggers = loggers
        self._train_seconds = self._eval_seconds = 0.0
        self._seconds_to_solve: float | None = None
        self._totals: Record = {}
        self._last: Record | None = None
        self._best: Record | None = None
        self._best_again: Record | None = None
        self.best_params: Params = None

    def train(self, asked: Asked) -> TrainState:
        """Run the warm-up and the chunks, until the budget, the solution or a signal ends it."""
        config = self._config
        self._started = time.perf_counter()
        state = jax.block_until_ready(self._programs.init(self._keys.train))
        self._train_seconds = time.perf_counter() - self._started
        self._totals = _totals(jax.device_get(state.counters))
        chunk, judged = 0, False
        while chunk < config.num_chunks and not asked and not self._may_stop():
            chunk += 1
            state = self._run_chunk(state, chunk)
            judged = chunk % config.chunks_per_evaluation == 0
            if judged:
                self._judge(state, chunk)
        if not judged:
            self._judge(state, chunk)
        if not asked:
            # The best of many evaluations was also the luckiest: play it anew.
            self._best_again = self._evaluate(self.best_params, self._keys.confirm, 0)
        return state

    def summary(self) -> Record:
        """Return what the run came to; call after ``train``."""
        last, best, again = self._last, self._best, self._best_again
        assert last is not None
        assert best is not None
        return {
            **self._totals,
            "train_seconds": self._train_seconds,
            "eval_seconds": self._eval_seconds,
            "env_steps_per_second": self._totals["env_steps"] / self._train_seconds,
            "gradient_steps_per_second": self._totals["gradient_steps"] / self._train_seconds,
            "eval_return_mean": last["return_mean"],
            "eval_return_std": last["return_std"],
            "eval_episodes": self._config.eval_episodes,
            "best_eval_return_mean": best["return_mean"],
            "best_eval_return_std": best["return_std"],
            "best_eval_rows": best["rows"],
            "best_fresh_return_mean": None if again is None else again["return_mean"],
            "solve_return": self._config.solve_return,
            "solved": self._seconds_to_solve is not None,
            "seconds_to_solve": self._seconds_to_solve,
        }

    def _may_stop(self) -> bool:
        return self._config.stop_when_solved and self._seconds_to_solve is not None

    def _run_chunk(self, state: TrainState, chunk: int) -> TrainState:
        started = time.perf_counter()
        state, report = self._programs.chunk(state)
        metrics, counters = jax.device_get(report)
        seconds = time.perf_counter() - started
        self._train_seconds += seconds
        self._totals = _totals(counters)
        self._log("metrics", {"chunk": chunk, **self._now(), **_chunk_record(metrics, seconds)})
        return state

    def _judge(self, state: TrainState, count: int) -> None:
        """Evaluate the parameters, keep them if they are the best, and confirm a solution."""
        params = learned_params(self._config, state)
        self._last = last = self._evaluate(params, self._keys.evaluate, 0)
        self._log("evaluation", {"purpose": "evaluate", **last})
        if self._best is None or last["return_mean"] > self._best["return_mean"]:
            self._best = last
            self.best_params = self._programs.copy(params)
        if self._seconds_to_solve is None and self._reaches(last):
            confirmation = self._evaluate(params, self._keys.confirm, count + 1)
            if self._reaches(confirmation):
                self._seconds_to_solve = self._seconds()
            self._log("evaluation", {"purpose": "confirm", **confirmation})

    def _reaches(self, evaluation: Record) -> bool:
        wanted = self._config.solve_return
        return wanted is not None and evaluation["return_mean"] >= wanted

    def _evaluate(self, params: Params, key: Array, count: int) -> Record:
        started = time.perf_counter()
        info = jax.device_get(self._programs.evaluate(params, key, np.int32(count)))
        self._eval_seconds += time.perf_counter() - started
        return {**self._now(), **_evaluation_record(info)}

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _now(self) -> Record:
        return {**self._totals, "seconds": self._seconds()}

    def _log(self, kind: str, record: Record) -> None:
        for logger in self._loggers:
            logger.log(kind, record)


def identity(config: Config, preset: str | None) -> Record:
    """Return what a summary says of a run before it begins."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax")
    return {
        "env": config.env,
        "preset": preset,
        "algorithm": algorithm(config),
        "seed": config.seed,
        "devices": config.devices,
        "mapping": "none" if config.devices == 1 else "shard_map",
        "device_kind": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "jaxdqn": __version__,
        },
    }


def algorithm(config: Config) -> str:
    """Return the algorithm's name, its variants included: ``dqn``, ``double_dqn_3step``."""
    name = "double_dqn" if config.double else "dqn"
    return name if config.n_step == 1 else f"{name}_{config.n_step}step"


def learned_params(config: Config, state: TrainState) -> Params:
    """Return the online parameters, not copied; with several devices those of the first."""
    if config.devices == 1:
        return state.agent.params
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], state.agent.params)


def _totals(counters: Counters) -> Record:
    """Return the counts as Python ints; with several devices all hold the same."""

    def count(counter: Counter) -> int:
        return counter_int(Counter(*(np.ravel(part)[0] for part in counter)))

    return {
        "env_steps": count(counters.env_steps),
        "rows": count(counters.rows),
        "gradient_steps": count(counters.gradient_steps),
    }


def _chunk_record(metrics: Metrics, seconds: float) -> Record:
    episodes = int(metrics.episodes)
    return {
        "env_steps_per_second": int(metrics.env_steps) / seconds,
        "gradient_steps_per_second": int(metrics.gradient_steps) / seconds,
        "episodes": episodes,
        "return_mean": float(metrics.return_sum) / episodes if episodes else None,
        "length_mean": float(metrics.length_sum) / episodes if episodes else None,
        **{name: float(getattr(metrics, name)) for name in ("loss", "grad_norm", "q_mean")},
        "epsilon": float(metrics.epsilon),
    }


def _evaluation_record(info: EvalInfo) -> Record:
    returns, lengths = np.asarray(info.returns, np.float64), np.asarray(info.lengths)
    return {
        "episodes": returns.size,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(ddof=1)) if returns.size > 1 else 0.0,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "length_mean": float(lengths.mean()),
    }
