"""The configuration of a run and its validation. Imports no JAX."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One training run. Sizes and budgets are totals over all devices.

    A *row* is one environment advanced or reset once; an *environment step* is
    a row that is not a reset; a *gradient step* is one optimiser update.
    """

    env: str = "CartPole-v1"
    """Environment, by its gymnax name."""
    seed: int = 0
    """Seed of everything random in the run."""
    total_steps: int = 200_000
    """Budget in rows; the run ends with the first chunk that reaches it."""

    num_envs: int = 32
    """Environments, stepped together."""
    rollout_length: int = 1
    """K: vector steps an iteration."""
    gradient_steps: int = 1
    """M: gradient steps an iteration, after its K vector steps."""
    replay_ratio: float | None = None
    """Rows learned from for each row acted; where given it sets gradient_steps."""
    batch_size: int = 128
    """Rows in a minibatch."""
    accumulate: int = 1
    """Minibatches whose gradients are averaged into one gradient step."""

    n_step: int = 1
    """N: rewards summed before the bootstrap."""
    double: bool = False
    """Choose the bootstrap action by the online network (van Hasselt et al. 2016)."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of a TD error."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from quadratic to linear."""
    gamma: float = 0.99
    """Discount of one environment step."""

    optimizer: Literal["adam", "rmsprop", "radam"] = "adam"
    """Gradient transformation."""
    learning_rate: float = 1e-3
    """Learning rate at the start."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate over the budget's gradient steps, down to zero."""
    adam_epsilon: float = 1e-8
    """Epsilon of the optimiser's denominator."""
    clip_value: float | None = None
    """Clip each element of the gradient to this absolute value."""
    clip_norm: float | None = None
    """Scale the gradient down to this global norm where it exceeds it."""
    normalize_gradients: bool = False
    """Scale every gradient to global norm 1."""
    target_period: int = 100
    """Gradient steps between replacements of the target network."""
    target_tau: float | None = None
    """Polyak step taken every gradient step; where given it replaces target_period."""

    exploration: Literal["epsilon_greedy", "boltzmann"] = "epsilon_greedy"
    """How actions depart from greedy."""
    epsilon_start: float = 1.0
    """Epsilon when learning starts."""
    epsilon_end: float = 0.05
    """Epsilon after epsilon_decay_steps."""
    epsilon_decay_steps: int = 50_000
    """Rows, after the warm-up, over which epsilon falls."""
    epsilon_schedule: Literal["linear", "exponential", "constant"] = "linear"
    """Course of epsilon; constant stays at epsilon_end."""
    epsilon_repeat: float = 0.0
    """Probability, times epsilon, of repeating the previous action first of all, so that random
    behaviour persists (cf. Dabney et al. 2021); for sparse rewards. epsilon_greedy only."""
    epsilon_ladder: float | None = None
    """Exponent alpha of a ladder over environments, epsilon^(1 + alpha i/(E-1))
    (Horgan et al. 2018, eq. 1; they use 7)."""
    temperature: float = 1.0
    """Softmax temperature, in units of Q; boltzmann only."""

    replay_capacity: int = 32_768
    """Rows kept; a multiple of num_envs * rollout_length."""
    warmup_steps: int = 1_024
    """Rows acted at random before learning, at least; rounded up to whole iterations."""
    replay_from: str | None = None
    """File of experiments.replay whose rows the replay begins with, before the warm-up's."""
    frame_stack: int = 1
    """S: frames stacked into one observation."""

    network: Literal["auto", "mlp", "minatar", "nature"] = "auto"
    """Torso; auto chooses by the observation's shape."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the MLP torso's layers; none is a linear (with one-hot: tabular) Q."""
    convolution: Literal["auto", "lax", "patches"] = "auto"
    """How convolutions are computed; the parameters are the same."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network; parameters and losses are float32."""

    eval_episodes: int = 100
    """Greedy episodes an evaluation, one for each of as many environments."""
    eval_every: int = 20_000
    """Rows between evaluations, rounded to whole chunks; 0 evaluates at the end only."""
    log_every: int = 10_000
    """Rows a chunk, rounded up to whole iterations: the grain of logs and signals."""
    solve_return: float | None = None
    """Mean greedy return that counts as solved, confirmed by fresh episodes."""
    stop_when_solved: bool = False
    """End the run when solved."""
    max_seconds: float | None = None
    """Wall-clock seconds, compilation included, after which the run ends as on SIGTERM."""
    checkpoint_every: int | None = None
    """Rows between checkpoints, rounded to whole chunks; by default five minutes; 0 makes none."""
    keep: int = 2
    """Newest checkpoints kept, besides the best one."""
    replay_in_checkpoint: bool = True
    """Save the replay in checkpoints. Without it they are small, but a resumed run is not
    continued exactly: its replay is empty and filled by acting as long as the warm-up."""
    guard: Literal["off", "skip", "rollback", "stop"] = "stop"
    """What becomes of a gradient step whose loss, gradient or parameters are not finite: it is
    undone, and then skip goes on, stop ends the run, rollback goes back to the last
    checkpoint with the learning rate times rollback_factor, up to rollback_limit times."""
    rollback_factor: float = 0.5
    """Factor on the learning rate at each rollback."""
    rollback_limit: int = 5
    """Rollbacks after which the run stops."""
    deterministic: bool = False
    """Repeat to the bit on the same kind and number of devices with the same versions; on GPU at
    the cost of slower scatters, over devices of a gather in place of an all-reduce."""
    devices: int = 1
    """Devices the run is spread over; must divide num_envs, batch_size and replay_capacity."""

    def __post_init__(self) -> None:
        validate(self)

    @property
    def envs_per_device(self) -> int:
        """E."""
        return self.num_envs // self.devices

    @property
    def batch_per_device(self) -> int:
        """B."""
        return self.batch_size // self.devices

    @property
    def replay_rows(self) -> int:
        """T: rows of replay for each environment."""
        return self.replay_capacity // self.num_envs

    @property
    def rows_per_iteration(self) -> int:
        """Rows acted in one iteration, over all devices."""
        return self.num_envs * self.rollout_length

    @property
    def gradient_steps_per_iteration(self) -> int:
        """M, from ``replay_ratio`` where that is given."""
        if self.replay_ratio is None:
            return self.gradient_steps
        return round(self._gradient_steps_for_ratio())

    def _gradient_steps_for_ratio(self) -> float:
        assert self.replay_ratio is not None
        return self.replay_ratio * self.rows_per_iteration / (self.batch_size * self.accumulate)

    @property
    def warmup_iterations(self) -> int:
        """Iterations of random acting before learning."""
        return -(-self.warmup_steps // self.rows_per_iteration)

    @property
    def num_chunks(self) -> int:
        """Chunks in the whole run."""
        return -(-self._learning_iterations // self._iterations_per_log)

    @property
    def iterations_per_chunk(self) -> int:
        """Iterations in each of the ``num_chunks`` chunks."""
        return -(-self._learning_iterations // self.num_chunks)

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
        """Chunks between checkpoints; None where they are taken by the clock or not at all."""
        if not self.checkpoint_every:
            return None
        rows_per_chunk = self.iterations_per_chunk * self.rows_per_iteration
        return max(1, round(self.checkpoint_every / rows_per_chunk))

    @property
    def total_gradient_steps(self) -> int:
        """Gradient steps in the whole run."""
        return self.num_chunks * self.iterations_per_chunk * self.gradient_steps_per_iteration

    @property
    def _iterations_per_log(self) -> int:
        return max(1, -(-self.log_every // self.rows_per_iteration))

    @property
    def _learning_iterations(self) -> int:
        warmup = self.warmup_iterations * self.rows_per_iteration
        return max(1, -(-(self.total_steps - warmup) // self.rows_per_iteration))


_AT_LEAST_ONE = (
    "total_steps", "num_envs", "rollout_length", "gradient_steps", "batch_size", "accumulate",
    "n_step", "target_period", "epsilon_decay_steps", "replay_capacity", "warmup_steps",
    "frame_stack", "eval_episodes", "log_every", "keep", "rollback_limit", "devices",
)  # fmt: skip
_POSITIVE = (
    "huber_delta", "learning_rate", "adam_epsilon", "temperature", "clip_value", "clip_norm",
    "replay_ratio", "max_seconds", "rollback_factor",
)  # fmt: skip
_PROBABILITIES = ("epsilon_start", "epsilon_end", "epsilon_repeat", "gamma")
_COUNT_LIMIT = 2**30
_NUMBER_LIMIT = 1e30  # well inside float32, in which they are computed


def _refuse(name: str, value: Any, constraint: str) -> None:
    raise ValueError(f"{name}={value!r}: must be {constraint}")


def validate(config: Config) -> None:
    """Check every field and every relation between fields.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    _validate_types(config)
    _validate_ranges(config)
    _validate_relations(config)


def _validate_types(config: Config) -> None:
    for name, kind in get_type_hints(Config).items():
        value = getattr(config, name)
        if value is None and type(None) in get_args(kind):
            continue
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                _refuse(name, value, f"one of {', '.join(get_args(kind))}")
        elif kind in (int, int | None):
            if not isinstance(value, int) or isinstance(value, bool):
                _refuse(name, value, "a whole number")
        elif kind is bool and not isinstance(value, bool):
            _refuse(name, value, "True or False")
        elif kind in (str, str | None) and not isinstance(value, str):
            _refuse(name, value, "a string")
        elif kind is float or float in get_args(kind):
            if isinstance(value, bool) or not isinstance(value, int | float):
                _refuse(name, value, "a number")
            if value != value or abs(value) == math.inf:
                _refuse(name, value, "finite")
            if abs(value) >= _NUMBER_LIMIT:
                _refuse(name, value, f"finite in float32: below {_NUMBER_LIMIT:g} in size")
    if not isinstance(config.hidden_sizes, tuple) or not all(
        type(width) is int and width >= 1 for width in config.hidden_sizes
    ):
        _refuse("hidden_sizes", config.hidden_sizes, "a tuple of whole numbers of at least 1")


def _validate_ranges(config: Config) -> None:
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            _refuse(name, getattr(config, name), "at least 1")
    for name in ("target_period", "log_every", "eval_every", "gradient_steps"):
        if getattr(config, name) >= _COUNT_LIMIT:
            _refuse(name, getattr(config, name), f"below {_COUNT_LIMIT}")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and value <= 0:
            _refuse(name, value, "greater than 0")
    for name in _PROBABILITIES:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            _refuse(name, value, "between 0 and 1")
    if config.target_tau is not None and not 0 < config.target_tau <= 1:
        _refuse("target_tau", config.target_tau, "above 0 and at most 1")
    if config.epsilon_ladder is not None and config.epsilon_ladder < 0:
        _refuse("epsilon_ladder", config.epsilon_ladder, "at least 0")
    if not 0 <= config.seed < 2**32:
        _refuse("seed", config.seed, "from 0 to 2**32 - 1")
    if config.eval_every < 0:
        _refuse("eval_every", config.eval_every, "at least 0")
    if config.checkpoint_every is not None and config.checkpoint_every < 0:
        _refuse("checkpoint_every", config.checkpoint_every, "at least 0")
    if config.rollback_factor >= 1:
        _refuse("rollback_factor", config.rollback_factor, "below 1")


def _validate_relations(config: Config) -> None:
    for name in ("num_envs", "batch_size"):
        if getattr(config, name) % config.devices:
            _refuse(name, getattr(config, name), f"a multiple of devices={config.devices}")
    per_add = config.rows_per_iteration
    if config.replay_capacity % per_add:
        below = config.replay_capacity // per_add * per_add
        _refuse(
            "replay_capacity",
            config.replay_capacity,
            f"a multiple of num_envs*rollout_length={per_add}, such as {below or per_add}",
        )
    reach = config.n_step + config.frame_stack + config.rollout_length
    if config.replay_rows <= reach:
        _refuse(
            "replay_capacity",
            config.replay_capacity,
            f"above num_envs*(n_step+frame_stack+rollout_length)={config.num_envs * reach}",
        )
    if config.replay_capacity >= _COUNT_LIMIT:
        _refuse("replay_capacity", config.replay_capacity, f"below {_COUNT_LIMIT}")
    drawn = config.batch_size * config.accumulate
    if drawn > config.replay_capacity:
        _refuse(
            "batch_size",
            config.batch_size,
            f"at most replay_capacity={config.replay_capacity} with accumulate="
            f"{config.accumulate}: more than can be sampled",
        )
    warmup_rows = config.warmup_iterations * per_add
    if drawn > warmup_rows:
        _refuse(
            "batch_size",
            config.batch_size,
            f"at most warmup_steps={config.warmup_steps} with accumulate={config.accumulate}: "
            "more than can be sampled when learning starts",
        )
    if warmup_rows <= config.n_step * config.num_envs:
        _refuse(
            "warmup_steps",
            config.warmup_steps,
            f"above n_step*num_envs={config.n_step * config.num_envs}",
        )
    if config.total_steps <= warmup_rows:
        _refuse("total_steps", config.total_steps, f"above the {warmup_rows} rows of warm-up")
    if config.replay_ratio is not None:
        steps = config._gradient_steps_for_ratio()
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
            unit = drawn / per_add
            _refuse(
                "replay_ratio",
                config.replay_ratio,
                f"a multiple of batch_size*accumulate/(num_envs*rollout_length)={unit:g}",
            )
    if config.epsilon_schedule == "exponential":
        for name in ("epsilon_start", "epsilon_end"):
            if getattr(config, name) == 0:
                _refuse(name, 0.0, "above 0 with epsilon_schedule='exponential'")
    if config.epsilon_repeat > 0 and config.exploration != "epsilon_greedy":
        _refuse("epsilon_repeat", config.epsilon_repeat, "0 unless exploration='epsilon_greedy'")
    if config.guard == "rollback" and config.checkpoint_every == 0:
        _refuse("checkpoint_every", 0, "above 0 with guard='rollback'")
    if config.stop_when_solved and config.solve_return is None:
        _refuse("stop_when_solved", True, "left False unless solve_return is given")


def replace(config: Config, **overrides: Any) -> Config:
    """Return ``config`` with some fields replaced, validated.

    Raises:
        ValueError: if a field is unknown or its value refused.
    """
    known = [field.name for field in dataclasses.fields(Config)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"{name}: no such field; nearest: {suggest(name, known)}")
    return dataclasses.replace(config, **overrides)


def suggest(name: str, known: list[str]) -> str:
    """Return the known names nearest to ``name``, or all of them, as text."""
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known)


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values, for JSON."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def from_dict(values: dict[str, Any]) -> Config:
    """Return the configuration that ``to_dict`` described.

    Raises:
        ValueError: if a field is unknown or its value refused.
    """
    values = dict(values)
    if isinstance(values.get("hidden_sizes"), list):
        values["hidden_sizes"] = tuple(values["hidden_sizes"])
    return replace(Config(), **values)
