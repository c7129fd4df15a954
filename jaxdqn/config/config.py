"""Validated configuration of a run, with the sizes that follow from it. Imports no JAX."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from jaxdqn.config.extra_hyper import read_extra
from jaxdqn.config.former_names import (
    accept_former_names,
    current_names,
    warn_of_former_names,
)
from jaxdqn.config.options import Options
from jaxdqn.config.sweeps import read_sweep
from jaxdqn.config.validation import validate
from jaxdqn.errors import suggest


@accept_former_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """One training run: validated options. Sizes and budgets are totals over all devices.

    ``jaxdqn.config.options.Options`` describes every option. A *row* is one environment advanced
    or reset once; an *environment step* is a row that is not a reset; a *gradient step* is one
    optimiser update.

    Raises:
        ValueError: if an option has an invalid value, or one that conflicts with another option.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        validate(self)

    @property
    def sweep_points(self) -> tuple[dict[str, Any], ...]:
        """Values of each combination of the sweep; one empty combination if there is no sweep."""
        names, values = [], []
        for text in self.sweep:
            name, choices = read_sweep(text)
            names.append(name)
            values.append(choices)
        return tuple(dict(zip(names, point, strict=True)) for point in itertools.product(*values))

    @property
    def extra_scalars(self) -> dict[str, float]:
        """Custom scalars by name, the entries of ``Hyper.extra``."""
        return dict(map(read_extra, self.extra_hyper))

    @property
    def learners(self) -> int:
        """P: learners over all devices, one for each seed and combination of the sweep."""
        return self.num_seeds * len(self.sweep_points)

    @property
    def replicas(self) -> int:
        """D: data-parallel replicas of one learner."""
        return 1 if self.learners > 1 else self.devices // self.model_devices

    @property
    def envs_per_device(self) -> int:
        """E: environments on each device."""
        return self.num_envs // self.replicas

    @property
    def resets_in_pool(self) -> int:
        """C: resets that each device makes in bulk with ``reset='pooled'``."""
        if self.reset_pool is not None:
            return self.reset_pool
        return -(-self.envs_per_device * max(4, self.rollout_length) // 16)

    @property
    def batch_per_device(self) -> int:
        """B: rows (sequences for a recurrent network) in a minibatch on each device."""
        if self.algorithm == "pqn":
            return self.envs_per_device * self.rollout_length // self.minibatches
        return self.batch_size // self.replicas

    @property
    def rows_per_gradient_step(self) -> int:
        """Rows that one gradient step learns from, over all devices."""
        length = 1 if self.recurrent == "none" else self.sequence_length
        return self.batch_per_device * self.accumulate * self.replicas * length

    @property
    def reach(self) -> int:
        """Rows that must follow a row of an environment before that row can start a sample."""
        if self.recurrent == "none":
            return self.n_step
        return self.burn_in + self.sequence_length + self.n_step - 1

    @property
    def start_stride(self) -> int:
        """Rows between the starts of consecutive sequences: ``sequence_stride`` or its default."""
        if self.recurrent == "none":
            return 1
        return self.sequence_stride or max(1, self.sequence_length // 2)

    @property
    def has_periodic_target(self) -> bool:
        """True if the target network is replaced every ``target_period`` gradient steps."""
        return self.algorithm == "dqn" and self.target_tau is None

    @property
    def iterations_per_average(self) -> int:
        """Iterations between averages of the parameters, at least 1; 1 without local SGD."""
        if self.average_every is None:
            return 1
        return max(1, self.average_every // self.gradient_steps_per_iteration)

    @property
    def replay_rows(self) -> int:
        """T: rows of replay for each environment."""
        return self.replay_capacity // self.num_envs

    @property
    def rows_per_iteration(self) -> int:
        """Rows collected in one iteration, over all devices."""
        return self.num_envs * self.rollout_length

    @property
    def gradient_steps_per_iteration(self) -> int:
        """M: gradient steps in an iteration, from ``replay_ratio`` if it is given."""
        if self.algorithm == "pqn":
            return self.epochs * self.minibatches
        if self.replay_ratio is None:
            return self.gradient_steps
        return round(self.gradient_steps_for_ratio())

    def gradient_steps_for_ratio(self) -> float:
        """Return the gradient steps per iteration for ``replay_ratio``, before rounding."""
        assert self.replay_ratio is not None
        return self.replay_ratio * self.rows_per_iteration / self.rows_per_gradient_step

    @property
    def warmup_iterations(self) -> int:
        """Iterations of random acting before learning starts."""
        if self.algorithm == "pqn":
            return 0
        return -(-self.warmup_rows // self.rows_per_iteration)

    @property
    def num_chunks(self) -> int:
        """Chunks in a complete run."""
        return -(-self._learning_iterations // self._iterations_per_log)

    @property
    def iterations_per_chunk(self) -> int:
        """Iterations in each of the ``num_chunks`` chunks."""
        if self.chunk_iterations is not None:
            return self.chunk_iterations
        even, unit = -(-self._learning_iterations // self.num_chunks), self.iterations_per_average
        return -(-even // unit) * unit  # a chunk ends with an average, so replicas are equal there

    @property
    def chunks_per_evaluation(self) -> int:
        """Chunks between evaluations."""
        if self.eval_every == 0:
            return self.num_chunks
        return max(
            1, round(self.eval_every / (self.iterations_per_chunk * self.rows_per_iteration))
        )

    @property
    def chunks_per_checkpoint(self) -> int | None:
        """Chunks between checkpoints; None if checkpoints follow the clock or are not written."""
        if not self.checkpoint_every:
            return None
        rows_per_chunk = self.iterations_per_chunk * self.rows_per_iteration
        return max(1, round(self.checkpoint_every / rows_per_chunk))

    @property
    def total_gradient_steps(self) -> int:
        """Gradient steps in a complete run."""
        return self.num_chunks * self.iterations_per_chunk * self.gradient_steps_per_iteration

    @property
    def has_budget_schedule(self) -> bool:
        """True if a schedule extends over the budget."""
        return self.replay == "prioritized" or self.learning_rate_schedule != "constant"

    @property
    def rows_of_schedules(self) -> int:
        """Length in rows of the budget schedules: ``schedule_rows``, by default the budget."""
        return self.total_rows if self.schedule_rows is None else self.schedule_rows

    @property
    def gradient_steps_of_schedules(self) -> int:
        """Length in gradient steps of the learning-rate schedule."""
        if self.schedule_rows is None:
            return self.total_gradient_steps
        span = dataclasses.replace(self, total_rows=self.schedule_rows, schedule_rows=None)
        return span.total_gradient_steps

    @property
    def _iterations_per_log(self) -> int:
        if self.chunk_iterations is not None:
            return self.chunk_iterations
        unit = self.iterations_per_average
        return max(1, -(-self.log_every // (self.rows_per_iteration * unit))) * unit

    @property
    def _learning_iterations(self) -> int:
        warmup = self.warmup_iterations * self.rows_per_iteration
        return max(1, -(-(self.total_rows - warmup) // self.rows_per_iteration))


def replace(config: Config, **overrides: Any) -> Config:
    """Return ``config`` with some fields replaced, validated.

    Raises:
        ValueError: if a field is unknown or its value invalid.
    """
    overrides = warn_of_former_names(overrides, stacklevel=2)
    return _replace(config, overrides)


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values, for JSON."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def from_dict(values: dict[str, Any]) -> Config:
    """Build a configuration from the output of ``to_dict``; missing fields have their defaults.

    Former names of fields are accepted.

    Raises:
        ValueError: if a field is unknown or its value invalid.
    """
    values = current_names(values)
    for name in ("checkpoint_signals", "env_args", "extra_hyper", "hidden_sizes", "sweep"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return _replace(Config(), values)


def _plain(value: Any) -> Any:
    """Convert a NumPy or JAX scalar, or each scalar of a tuple, to a Python number."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if is_scalar else value


def _replace(config: Config, values: dict[str, Any]) -> Config:
    known = [field.name for field in dataclasses.fields(Config)]
    for name in values:
        if name not in known:
            raise ValueError(f"{name}: no such field; nearest: {suggest(name, known)}")
    return dataclasses.replace(config, **values)
