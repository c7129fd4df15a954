"""The configuration of a run and its validation. Imports no JAX."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

from jaxdqn.config.options import read_sweep
from jaxdqn.config.validation import validate
from jaxdqn.errors import suggest


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
    total_rows: int = 200_000
    """Budget in rows; the run ends with the first chunk that reaches it."""

    algorithm: Literal["dqn", "pqn"] = "dqn"
    """dqn and all that is made of it; or PQN, without replay and target network, on the rows just
    acted (Gallici et al. 2024)."""
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

    minibatches: int = 32
    """Gradient steps in a pass over the rows of an iteration; pqn only."""
    epochs: int = 2
    """Passes over the rows of an iteration; pqn only."""
    trace_decay: float = 0.65
    """lambda of the targets: 0 bootstraps after one step, 1 at the end of the rows; pqn only."""

    n_step: int = 1
    """N: rewards summed before the bootstrap."""
    double: bool = False
    """Choose the bootstrap action by the online network (van Hasselt et al. 2016)."""
    loss: str = "huber"
    """huber or squared, of a TD error; categorical (C51, Bellemare et al. 2017), quantile (QR-DQN,
    Dabney et al. 2018a) or implicit_quantile (IQN, Dabney et al. 2018b), of return distributions;
    or a loss of your own, by the name it was registered with."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from quadratic to linear; huber and the quantile losses only."""
    bootstrap: Literal["greedy", "soft", "munchausen"] = "greedy"
    """Value of the next observation: of the best action; of the softmax policy and its entropy; or
    the latter and a bonus for what the policy would do (Munchausen, Vieillard et al. 2020)."""
    entropy_temperature: float = 0.03
    """Temperature of that softmax policy, in units of Q; soft and munchausen only."""
    munchausen_scale: float = 0.9
    """Factor of the bonus, which is at most 0; munchausen only."""
    munchausen_clip: float = -1.0
    """Least that the bonus is before the factor; munchausen only."""
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
    """Epsilon after epsilon_decay_rows."""
    epsilon_decay_rows: int = 50_000
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

    replay: Literal["uniform", "prioritized"] = "uniform"
    """How rows are drawn: all alike, or in proportion to their priority (Schaul et al. 2016)."""
    priority_exponent: float = 0.6
    """alpha: a row's priority is its |TD error| to this power; prioritized only."""
    importance_exponent: float = 0.4
    """beta at the start: how much of the bias of prioritised draws the loss's weights undo; it
    rises to 1, all of it, in the course of the budget; prioritized only."""
    replay_capacity: int = 32_768
    """Rows kept; a multiple of num_envs * rollout_length."""
    warmup_rows: int = 1_024
    """Rows acted at random before learning, at least; rounded up to whole iterations."""
    replay_from: str | None = None
    """File of ``jaxdqn replay`` whose rows the replay begins with, before the warm-up's."""
    frame_stack: int = 1
    """S: frames stacked into one observation."""

    network: Literal["auto", "mlp", "minatar", "nature"] = "auto"
    """Torso; auto chooses by the observation's shape."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the MLP torso's layers; none is a linear (with one-hot: tabular) Q."""
    dueling: bool = False
    """Q as a value and the actions' advantages over their mean, by two streams that each have the
    torso's last dense layer (Wang et al. 2016)."""
    noisy: bool = False
    """Explore by noise in the parameters of the dense layers, a part of what is learned (NoisyNet,
    Fortunato et al. 2018); with epsilon_schedule constant and epsilon_end 0 by it alone."""
    noisy_sigma: float = 0.5
    """sigma_0, the noise at the start; noisy only."""
    layer_norm: bool = False
    """Normalise what goes into each activation (Ba et al. 2016)."""
    recurrent: Literal["none", "lstm", "gru"] = "none"
    """Remember: a recurrent cell after the torso, learned from sequences of rows (R2D2, Kapturowski
    et al. 2019)."""
    recurrent_size: int = 128
    """Width of the cell; recurrent only."""
    sequence_length: int = 16
    """Rows of a sequence that are learned from; batch_size counts sequences; recurrent only."""
    burn_in: int = 4
    """Rows before them that bring the cell's state up to date; recurrent only."""
    rescale_values: bool = False
    """Learn values in units that bring large ones near each other (Pohlen et al. 2018); recurrent
    only."""
    atoms: int = 51
    """Z: returns on which a distribution lies, from value_min to value_max; categorical only."""
    value_min: float = -10.0
    """Least return of a distribution; categorical only."""
    value_max: float = 10.0
    """Greatest return of a distribution; categorical only."""
    quantiles: int = 32
    """Z: quantiles of a distribution; of IQN those drawn each time; quantile losses only."""
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
    """Devices the run is spread over. With one learner they share its environments, batch and
    replay, which must divide; with several learners they share the learners."""
    mapping: Literal["shard_map", "pmap"] = "shard_map"
    """How the step is mapped over devices; both compute the same."""
    model_devices: int = 1
    """Devices, of devices, over which the wide layers of each replica are split."""
    average_every: int | None = None
    """Gradient steps that each device takes on its own parameters before these are averaged
    (local SGD); by default gradients are averaged at every step instead."""
    average_moments: bool = False
    """Average the optimiser's moments together with the parameters."""
    compression: Literal["none", "bfloat16", "int8", "top_k"] = "none"
    """Form in which gradients are sent between devices; what it loses is sent later."""
    top_k_fraction: float = 0.01
    """Share of the gradient's elements that top_k sends."""

    num_seeds: int = 1
    """Independent learners in one program, of seeds seed, seed + 1, ..."""
    sweep: tuple[str, ...] = ()
    """Hyper-parameters to try, each as NAME=VALUE,VALUE,...; every combination is trained with
    every seed, all in one program."""
    population: Literal["auto", "vmap", "map"] = "auto"
    """How several learners share a device: vmap steps them together, map one after the other;
    auto takes vmap on accelerators."""

    def __post_init__(self) -> None:
        validate(self)

    @property
    def sweep_points(self) -> tuple[dict[str, Any], ...]:
        """What each combination of the sweep sets; one that sets nothing without a sweep."""
        names, values = [], []
        for text in self.sweep:
            name, choices = read_sweep(text)
            names.append(name)
            values.append(choices)
        return tuple(dict(zip(names, point, strict=True)) for point in itertools.product(*values))

    @property
    def learners(self) -> int:
        """P, over all devices: every seed with every combination of the sweep."""
        return self.num_seeds * len(self.sweep_points)

    @property
    def replicas(self) -> int:
        """D: replicas that learn together, each from its own share of the environments."""
        return 1 if self.learners > 1 else self.devices // self.model_devices

    @property
    def envs_per_device(self) -> int:
        """E."""
        return self.num_envs // self.replicas

    @property
    def batch_per_device(self) -> int:
        """B."""
        if self.algorithm == "pqn":
            return self.envs_per_device * self.rollout_length // self.minibatches
        return self.batch_size // self.replicas

    @property
    def rows_per_gradient_step(self) -> int:
        """Rows that a gradient step learns from, over all devices."""
        length = 1 if self.recurrent == "none" else self.sequence_length
        return self.batch_per_device * self.accumulate * self.replicas * length

    @property
    def reach(self) -> int:
        """Rows of one environment that a start needs after it to be learned from."""
        if self.recurrent == "none":
            return self.n_step
        return self.burn_in + self.sequence_length + self.n_step - 1

    @property
    def has_periodic_target(self) -> bool:
        """Whether the target network is replaced now and then."""
        return self.algorithm == "dqn" and self.target_tau is None

    @property
    def iterations_per_average(self) -> int:
        """Iterations between averagings of the parameters; 1 where each iteration has its own."""
        if self.average_every is None:
            return 1
        return max(1, self.average_every // self.gradient_steps_per_iteration)

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
        if self.algorithm == "pqn":
            return self.epochs * self.minibatches
        if self.replay_ratio is None:
            return self.gradient_steps
        return round(self.gradient_steps_for_ratio())

    def gradient_steps_for_ratio(self) -> float:
        assert self.replay_ratio is not None
        return self.replay_ratio * self.rows_per_iteration / self.rows_per_gradient_step

    @property
    def warmup_iterations(self) -> int:
        """Iterations of random acting before learning."""
        if self.algorithm == "pqn":
            return 0
        return -(-self.warmup_rows // self.rows_per_iteration)

    @property
    def num_chunks(self) -> int:
        """Chunks in the whole run."""
        return -(-self._learning_iterations // self._iterations_per_log)

    @property
    def iterations_per_chunk(self) -> int:
        """Iterations in each of the ``num_chunks`` chunks."""
        even, unit = -(-self._learning_iterations // self.num_chunks), self.iterations_per_average
        return -(-even // unit) * unit  # a chunk ends with replicas that are equal

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
        unit = self.iterations_per_average
        return max(1, -(-self.log_every // (self.rows_per_iteration * unit))) * unit

    @property
    def _learning_iterations(self) -> int:
        warmup = self.warmup_iterations * self.rows_per_iteration
        return max(1, -(-(self.total_rows - warmup) // self.rows_per_iteration))


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
    for name in ("hidden_sizes", "sweep"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return replace(Config(), **values)
