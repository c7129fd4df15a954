"""What the host does between chunks: it counts, logs, evaluates, and decides when to end."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import jax
import numpy as np

from jaxdqn import __version__
from jaxdqn.checkpoint import Restored
from jaxdqn.config import Config
from jaxdqn.evaluation import EvalInfo
from jaxdqn.guard import not_finite
from jaxdqn.keeper import Keeper
from jaxdqn.loggers import Logger, Record
from jaxdqn.programs import Programs, RunKeys
from jaxdqn.run_directory import RunFailed
from jaxdqn.signals import Asked
from jaxdqn.types import Array, Counter, Counters, Metrics, Params, TrainState, counter_int


@dataclasses.dataclass
class _Kept:
    """What the host knows of a run and a checkpoint keeps: plain values."""

    chunk: int = 0
    """Chunks run."""
    judged: int = -1
    """The chunk after which the parameters were last evaluated."""
    seconds: float = 0.0
    """On the run's clock, when the checkpoint was taken."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    seconds_to_solve: float | None = None
    rollbacks: int = 0
    totals: Record = dataclasses.field(default_factory=dict)
    last: Record | None = None
    """The last evaluation."""
    best: Record | None = None
    """The best evaluation."""


class HostLoop:
    """A run in progress as the host sees it: clocks, totals, the best parameters so far."""

    def __init__(
        self,
        config: Config,
        programs: Programs,
        keys: RunKeys,
        loggers: Sequence[Logger],
        keeper: Keeper | None = None,
    ) -> None:
        self._config, self._programs, self._keys = config, programs, keys
        self._loggers, self._keeper = loggers, keeper
        self._started = time.perf_counter()
        self._kept = _Kept()
        self._best_again: Record | None = None
        self.best_params: Params = None
        self.failure: OSError | None = None
        """Why the last checkpoint could not be written."""

    def start(self, init: Callable[[Array], TrainState] | None = None) -> TrainState:
        """Begin a run, warm-up included.

        Args:
            init: instead of the compiled ``Programs.init``.
        """
        self._started = time.perf_counter()
        state = jax.block_until_ready((init or self._programs.init)(self._keys.train))
        self._kept.train_seconds = self._seconds()
        self._kept.totals = _totals(jax.device_get(state.counters))
        if self._keeper is not None and self._config.guard == "rollback":
            self._save(state)  # so that there is something to go back to
        return state

    def resume(self, restored: Restored) -> TrainState:
        """Go on from a checkpoint."""
        state = self._revive(restored)
        self._kept = _Kept(**restored.meta["host"])
        if not restored.meta["replay"]:
            self._kept.totals = _totals(jax.device_get(state.counters))
        # The clock goes on from where it was: time in which nothing ran does not count.
        self._started = time.perf_counter() - self._kept.seconds
        return state

    def train(self, state: TrainState, asked: Asked) -> TrainState:
        """Run the chunks, until the budget, the solution, the clock or a signal ends it.

        Raises:
            RunFailed: if the guard stops the run.
            OSError: if a record cannot be written, or a checkpoint but the last.
        """
        config, kept = self._config, self._kept
        while self.unfinished and not asked:
            state, metrics = self._run_chunk(state)
            if config.guard != "off" and not _is_finite(metrics):
                state, went_back = self._guard(state, metrics)
                kept = self._kept
                if went_back:
                    continue
            if kept.chunk % config.chunks_per_evaluation == 0:
                self._judge(state)
            if self._keeper is not None:
                self._keeper.check()
                if self._keeper.due(kept.chunk):
                    self._save(state)
        if self._keeper is not None:
            # Before the last evaluation, which a run that goes on from here does not make.
            try:
                if not self._keeper.has(kept.chunk):
                    self._save(state)
                self._keeper.wait()
            except OSError as error:
                # What was learned is still written, if it can be.
                self.failure = error
        if kept.judged != kept.chunk:
            self._judge(state)
        if not asked:
            # The best of many evaluations was also the luckiest: play it anew.
            self._best_again = self._evaluate(self.best_params, self._keys.confirm, 0)
        return state

    def ended_by(self, asked: Asked) -> str:
        """Return what ended the run: ``budget``, ``solution``, or what asked it to end."""
        if self.unfinished:
            return asked.why or "nothing"
        return "budget" if self.spent else "solution"

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self._kept.chunk >= self._config.num_chunks

    @property
    def unfinished(self) -> bool:
        """Whether there are chunks left to run."""
        may_stop = self._config.stop_when_solved and self._kept.seconds_to_solve is not None
        return not self.spent and not may_stop

    def summary(self) -> Record:
        """Return what the run came to; call after ``train``."""
        kept, again = self._kept, self._best_again
        last, best = kept.last, kept.best
        assert last is not None
        assert best is not None
        return {
            **kept.totals,
            "train_seconds": kept.train_seconds,
            "eval_seconds": kept.eval_seconds,
            "env_steps_per_second": kept.totals["env_steps"] / kept.train_seconds,
            "gradient_steps_per_second": kept.totals["gradient_steps"] / kept.train_seconds,
            "eval_return_mean": last["return_mean"],
            "eval_return_std": last["return_std"],
            "eval_episodes": self._config.eval_episodes,
            "best_eval_return_mean": best["return_mean"],
            "best_eval_return_std": best["return_std"],
            "best_eval_rows": best["rows"],
            "best_fresh_return_mean": None if again is None else again["return_mean"],
            "solve_return": self._config.solve_return,
            "solved": kept.seconds_to_solve is not None,
            "seconds_to_solve": kept.seconds_to_solve,
            "rollbacks": kept.rollbacks,
        }

    def _run_chunk(self, state: TrainState) -> tuple[TrainState, Metrics]:
        started, kept = time.perf_counter(), self._kept
        state, report = self._programs.chunk(state)
        metrics, counters = jax.device_get(report)
        seconds = time.perf_counter() - started
        kept.chunk += 1
        kept.train_seconds += seconds
        kept.totals = _totals(counters)
        record = {"chunk": kept.chunk, **self._now(), **_chunk_record(metrics, seconds)}
        self._log("metrics", record)
        return state, metrics

    def _judge(self, state: TrainState) -> None:
        """Evaluate the parameters, keep them if they are the best, and confirm a solution."""
        kept, params = self._kept, learned_params(self._config, state)
        kept.judged = kept.chunk
        kept.last = last = self._evaluate(params, self._keys.evaluate, 0)
        self._log("evaluation", {"purpose": "evaluate", **last})
        best = None if kept.best is None else kept.best["return_mean"]
        if best is None or last["return_mean"] > best or not np.isfinite(best):
            kept.best = last
            self.best_params = self._programs.copy(params)
        if kept.seconds_to_solve is None and self._reaches(last):
            confirmation = self._evaluate(params, self._keys.confirm, kept.chunk + 1)
            if self._reaches(confirmation):
                kept.seconds_to_solve = self._seconds()
            self._log("evaluation", {"purpose": "confirm", **confirmation})

    def _save(self, state: TrainState) -> None:
        """Take a checkpoint: copy the state, and leave the writing to another thread."""
        assert self._keeper is not None
        kept, started = self._kept, time.perf_counter()
        kept.seconds = self._seconds()
        params = learned_params(self._config, state)
        best = params if self.best_params is None else self.best_params
        host = dataclasses.asdict(kept)
        self._keeper.save(kept.chunk, state, best=best, last=params, host=host)
        blocked = time.perf_counter() - started
        self._log(
            "event",
            {"event": "checkpoint", "chunk": kept.chunk, **self._now(), "blocked_seconds": blocked},
        )

    def _revive(self, restored: Restored) -> TrainState:
        assert self._keeper is not None
        state = self._programs.revive(restored.state)
        if not restored.meta["replay"]:
            state = self._programs.refill(state)
        params = learned_params(self._config, state)
        best = self._keeper.read_best(restored.step, params)
        self.best_params = None if restored.meta["host"]["best"] is None else best
        return jax.block_until_ready(state)

    def _guard(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, bool]:
        """Do what the configuration asks for after a chunk in which something was not finite.

        Returns:
            The state to go on from, and whether that is an earlier one.

        Raises:
            RunFailed: naming the gradient step, the tensors and the last good checkpoint.
        """
        config, kept = self._config, self._kept
        first = kept.totals["gradient_steps"] - int(metrics.gradient_steps) + 1
        first += int(metrics.first_skipped)
        what = "nothing was undone" if not metrics.skipped else f"first at gradient step {first:,}"
        found = {"event": "not finite", "chunk": kept.chunk, **self._now()}
        found |= {"first": first if metrics.skipped else None, "skipped": int(metrics.skipped)}
        self._log("event", {**found, "guard": config.guard})
        if config.guard == "skip" and not metrics.lost:
            return state, False
        spent = kept.rollbacks >= config.rollback_limit
        if self._keeper is not None and config.guard == "rollback" and not spent:
            self._keeper.wait()
            restored = self._keeper.newest(finite=True)
            if restored is not None:
                del state  # there is not always room for both
                return self._go_back(restored), True
        where = ", ".join(not_finite(state)) or "nowhere in the state, whose update was undone"
        last = None
        if self._keeper is not None:
            self._keeper.close()
            good = self._keeper.newest(finite=True)
            last = None if good is None else self._keeper.place(good.step)
        raise RunFailed(
            f"guard={config.guard!r}: loss, gradient or parameters not finite in chunk "
            f"{kept.chunk} ({what}; {int(metrics.skipped)} of {int(metrics.gradient_steps)} steps "
            f"undone); now not finite: {where}; "
            + (f"after {kept.rollbacks} rollbacks; " if kept.rollbacks else "")
            + ("no checkpoint" if last is None else f"last good checkpoint: {last}")
        )

    def _go_back(self, restored: Restored) -> TrainState:
        """Return the state of a checkpoint with a lower learning rate and other random numbers."""
        assert self._keeper is not None
        rollbacks, seconds = self._kept.rollbacks + 1, self._seconds()
        state = self._revive(restored)
        self._kept = _Kept(**restored.meta["host"])
        since = rollbacks - self._kept.rollbacks
        factor = np.float32(self._config.rollback_factor**since)
        state = self._programs.turn(state, np.int32(rollbacks), factor)
        self._kept.rollbacks = rollbacks
        self._started = time.perf_counter() - seconds
        self._keeper.cut_back(restored)
        rate = float(np.ravel(jax.device_get(state.hyper.learning_rate))[0])
        record = {"event": "rollback", "chunk": restored.step, **self._now(), "learning_rate": rate}
        self._log("event", record)
        return state

    def _reaches(self, evaluation: Record) -> bool:
        wanted = self._config.solve_return
        return wanted is not None and evaluation["return_mean"] >= wanted

    def _evaluate(self, params: Params, key: Array, count: int) -> Record:
        started = time.perf_counter()
        info = jax.device_get(self._programs.evaluate(params, key, np.int32(count)))
        self._kept.eval_seconds += time.perf_counter() - started
        return {**self._now(), **_evaluation_record(info)}

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _now(self) -> Record:
        return {**self._kept.totals, "seconds": self._seconds()}

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


def _is_finite(metrics: Metrics) -> bool:
    return not (metrics.skipped or metrics.lost) and bool(
        np.isfinite([metrics.loss, metrics.grad_norm]).all()
    )


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
        "skipped": int(metrics.skipped),
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
