"""Options of a run: each field with its default, its rule and its help. Imports no JAX.

``Options`` is not validated, so the command line can hold flags before they are checked.
``Config`` is validated.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.config.option import option, rules

COUNT_LIMIT = 2**30
"""Upper bound of counts: the sum of two smaller counts fits in int32."""

CHECKPOINT_SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1")
"""Signals that by default end a run with a checkpoint, in addition to SIGINT."""

_HUBER_LOSSES = ("huber", "quantile", "implicit_quantile")
_QUANTILE_LOSSES = ("quantile", "implicit_quantile")
CONVOLUTIONS = ("minatar", "nature", "impala", "hadamax")
"""Convolutional torsos, which have their own dense layer."""
_CELLS = ("lstm", "gru")
_RECURRENT = (*_CELLS, "custom")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of one training run. Sizes and budgets are totals over all devices.

    A *row* is one environment advanced or reset once; an *environment step* is
    a row that is not a reset; a *gradient step* is one optimiser update.
    """

    env: str = option("CartPole-v1", group="Run", everyday=True)
    """Name in gymnax, or SUITE:ID. Suites on the device: pixels, navix, xminigrid, craftax,
    jumanji, pgx, octax; on the host: gymnasium, ale, envpool."""
    env_args: tuple[str, ...] = option((), group="Run")
    """Arguments of the environment, each as NAME=VALUE. gymnax: fields of its parameters, such as
    max_steps_in_episode=50, or arguments of its constructor. Gymnasium: arguments of
    gymnasium.make, such as max_episode_steps=50. Other suites: see docs/suites.md. --env-arg
    NAME=VALUE gives one argument, and may be repeated."""
    sticky_actions: float = option(0.0, group="Run", at_least=0, below=1)
    """Probability that the environment repeats the previous action instead of the agent's, in
    training and evaluation (Machado et al. 2018). Atari games have the argument
    repeat_action_probability instead."""
    full_action_set: bool = option(False, group="Run")
    """Use all six actions of a MinAtar game, as published, also those without an effect."""
    seed: int = option(0, group="Run", between=(0, 2**32 - 1), everyday=True)
    """Seed of all random numbers of the run."""
    total_rows: int = option(
        200_000, group="Run", at_least=1, everyday=True, formerly="total_steps"
    )
    """Budget in rows: environment steps and resets. The run ends with the first chunk that reaches
    it."""
    max_seconds: float | None = option(None, group="Run", above=0, everyday=True)
    """Budget in wall-clock seconds, compilation included; the run then ends as on SIGTERM, also
    within its first chunk."""
    log_every: int = option(10_000, group="Run", at_least=1, below=COUNT_LIMIT)
    """Maximum number of rows in a chunk, rounded up to complete iterations; all chunks have the
    same length. Metrics are logged once per chunk. Signals are handled at the end of a chunk, and
    about every half second within long chunks after the first."""
    chunk_iterations: int | None = option(None, group="Run", at_least=1, below=COUNT_LIMIT)
    """Iterations in a chunk; replaces log_every. A run that is resumed with another budget keeps
    its number of iterations per chunk."""
    schedule_rows: int | None = option(None, group="Run", at_least=1)
    """Rows over which learning_rate_schedule and the rise of importance_exponent extend; by default
    total_rows. Afterwards both keep their final values."""
    diagnostics: bool = option(False, group="Run")
    """Log more about learning: histograms of Q and |TD error|, maximum Q, distance from the target
    network, gradient norm after clipping, age of the drawn rows, fill of the replay, effective
    sample size. If off, the compiled programs do not contain them. See docs/monitoring.md."""
    deterministic: bool = option(False, group="Run")
    """Make runs bitwise reproducible on the same kind and number of devices with the same library
    versions. Scatters on GPU become slower, and several devices use an all-gather in place of an
    all-reduce."""

    algorithm: Literal["dqn", "pqn"] = option("dqn", group="Algorithm")
    """dqn: DQN and its variants, with a replay. pqn: PQN, which learns from the newest rows,
    without a replay or a target network (Gallici et al. 2024)."""
    num_envs: int = option(32, group="Algorithm", at_least=1, everyday=True)
    """Number of environments, stepped together."""
    rollout_length: int = option(1, group="Algorithm", at_least=1)
    """K: vector steps in an iteration."""
    reset: Literal["auto", "every-step", "pooled"] = option("auto", group="Algorithm")
    """every-step computes a reset with every step of every environment and uses it where an episode
    has ended; fastest for cheap resets. pooled computes reset_pool resets in bulk once per
    iteration, and again when they are used up; a reset is used at most once. auto chooses pooled
    if a reset has more operations than the rest of a row; the run stores the choice. See
    docs/performance.md."""
    reset_pool: int | None = option(
        None, group="Algorithm", at_least=1, below=COUNT_LIMIT, only_with={"reset": "pooled"}
    )
    """Number of resets in the pool of each device. By default one per 16 rows of an iteration, and
    at least one per four environments."""
    overlap: bool = option(True, group="Algorithm")
    """For an environment on the host: act during the gradient steps of the previous iteration, on
    parameters that are one iteration old. Otherwise acting and learning take turns."""
    act_on: Literal["device", "cpu"] = option("device", group="Algorithm")
    """For an environment on the host: act on the device that learns, or on the CPU. With cpu the
    parameters are copied to the CPU after the gradient steps of each iteration. This is faster if
    the network is small and calls to the device are slow, or the device is busy learning. It has no
    effect if the device is a CPU."""
    act_precision: Literal["float32", "int8"] = option(
        "float32", group="Algorithm", only_with={"algorithm": "dqn"}
    )
    """Precision of the weights for acting in training. int8 rounds matrices and kernels, with a
    scale for each output channel (ActorQ, Krishnan et al. 2022). Learning and evaluations use the
    unrounded weights."""
    env_processes: bool = option(False, group="Algorithm")
    """For an environment on the host: step each in its own process, for slow simulators. Otherwise
    they are stepped in turn in the process of the run."""
    restart_envs: int = option(0, group="Algorithm", at_least=0)
    """For an environment on the host: maximum number of times that a run restarts its environments,
    with new episodes, after a step of one of them has failed, in training and evaluation together.
    After one more failure the run ends with a checkpoint."""
    check_bounds: bool = option(False, group="Algorithm")
    """For an environment on the host: end the run if an observation is outside of the bounds of its
    space. Many environments exceed their bounds, so this is not checked by default."""
    gradient_steps: int = option(
        1, group="Algorithm", at_least=1, below=COUNT_LIMIT, only_with={"algorithm": "dqn"}
    )
    """M: gradient steps in an iteration, after its K vector steps."""
    replay_ratio: float | None = option(
        None, group="Algorithm", above=0, only_with={"algorithm": "dqn"}
    )
    """Rows sampled for learning per row collected; replaces gradient_steps."""
    batch_size: int = option(
        128, group="Algorithm", at_least=1, everyday=True, only_with={"algorithm": "dqn"}
    )
    """Rows in a minibatch."""
    accumulate: int = option(1, group="Algorithm", at_least=1, only_with={"algorithm": "dqn"})
    """Minibatches whose gradients are averaged into one gradient step."""
    clip_rewards: bool = option(False, group="Algorithm")
    """Learn from rewards clipped to [-1, 1] (Mnih et al. 2015); of an integer reward only the sign
    remains. The returns in all records are sums of the unclipped rewards."""
    gamma: float = option(0.99, group="Algorithm", between=(0, 1), sweepable=True, everyday=True)
    """Discount of one environment step."""
    n_step: int = option(1, group="Algorithm", at_least=1, only_with={"algorithm": "dqn"})
    """N: rewards summed before the bootstrap."""
    importance_ratios: bool = option(False, group="Algorithm", only_with={"algorithm": "dqn"})
    """Correct n-step returns for off-policy actions (Retrace, Munos et al. 2016). Each step after
    the first is weighted by its importance ratio pi/mu, truncated at 1, where pi is the target
    policy and mu the stored probability of the action. One-step targets need no correction."""
    target_epsilon: float = option(
        0.0, group="Algorithm", between=(0, 1), only_with={"importance_ratios": True}
    )
    """Epsilon of the epsilon-greedy target policy pi. With 0 the policy is greedy, and a return
    ends at the first action that is not greedy."""
    double: bool = option(False, group="Algorithm", only_with={"algorithm": "dqn"})
    """Choose the bootstrap action by the online network (van Hasselt et al. 2016)."""
    target_period: int = option(
        100, group="Algorithm", at_least=1, below=COUNT_LIMIT, only_with={"algorithm": "dqn"}
    )
    """Gradient steps between replacements of the target network."""
    target_tau: float | None = option(
        None,
        group="Algorithm",
        above=0,
        at_most=1,
        sweepable=True,
        only_with={"algorithm": "dqn"},
    )
    """Step size of a Polyak average of the target network at every gradient step; replaces
    target_period."""
    minibatches: int = option(32, group="PQN", at_least=1, only_with={"algorithm": "pqn"})
    """Gradient steps in a pass over the rows of an iteration."""
    epochs: int = option(2, group="PQN", at_least=1, only_with={"algorithm": "pqn"})
    """Passes over the rows of an iteration."""
    trace_decay: float = option(
        0.65, group="PQN", between=(0, 1), sweepable=True, only_with={"algorithm": "pqn"}
    )
    """lambda of the returns: 0 bootstraps after one step, 1 after the last row only."""

    loss: str = option("huber", group="Loss", choices=LOSSES)
    """Loss of TD errors: huber or squared. Loss of return distributions: categorical (C51,
    Bellemare et al. 2017), quantile (QR-DQN, Dabney et al. 2018a) or implicit_quantile (IQN, Dabney
    et al. 2018b). A custom loss is named as registered."""
    huber_delta: float = option(
        1.0, group="Loss", above=0, sweepable=True, swept_with={"loss": _HUBER_LOSSES}
    )
    """Error at which the Huber loss changes from quadratic to linear; only for huber and the
    quantile losses."""
    atoms: int = option(51, group="Loss", at_least=2, only_with={"loss": "categorical"})
    """Z: number of atoms, equally spaced from value_min to value_max."""
    value_min: float = option(-10.0, group="Loss", only_with={"loss": "categorical"})
    """Lowest return of a distribution."""
    value_max: float = option(10.0, group="Loss", only_with={"loss": "categorical"})
    """Highest return of a distribution."""
    quantiles: int = option(32, group="Loss", at_least=1, only_with={"loss": _QUANTILE_LOSSES})
    """Z: number of quantiles of a distribution; for IQN, the number drawn each time."""
    bootstrap: Literal["greedy", "soft", "munchausen"] = option(
        "greedy", group="Loss", only_with={"algorithm": "dqn"}
    )
    """Bootstrap target. greedy: max Q; soft: entropy-regularised value of the softmax policy;
    munchausen: soft plus a log-policy bonus (Vieillard et al. 2020). With n_step above 1 only the
    first action of a return has the bonus."""
    entropy_temperature: float = option(
        0.03,
        group="Loss",
        above=0,
        sweepable=True,
        only_with={"bootstrap": ("soft", "munchausen")},
    )
    """Temperature of the softmax policy of the bootstrap target, in units of Q."""
    munchausen_scale: float = option(
        0.9, group="Loss", above=0, sweepable=True, only_with={"bootstrap": "munchausen"}
    )
    """Factor of the log-policy bonus."""
    munchausen_clip: float = option(
        -1.0, group="Loss", at_most=0, sweepable=True, only_with={"bootstrap": "munchausen"}
    )
    """Lower clip of the scaled log-policy, before it is multiplied by munchausen_scale."""

    optimizer: Literal["adam", "rmsprop", "radam", "muon"] = option("adam", group="Optimiser")
    """Gradient transformation. muon orthogonalises the momentum of matrices and applies Adam to
    other parameters (Jordan et al. 2024)."""
    learning_rate: float = option(1e-3, group="Optimiser", above=0, sweepable=True, everyday=True)
    """Initial learning rate."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", group="Optimiser"
    )
    """Schedule of the learning rate over schedule_rows; linear and cosine end at zero."""
    optimizer_epsilon: float = option(1e-8, group="Optimiser", above=0, formerly="adam_epsilon")
    """Epsilon in the denominator of the optimiser. It is added to the square root, or with
    rmsprop_centered to the variance under the root."""
    rmsprop_decay: float = option(
        0.9, group="Optimiser", between=(0, 1), only_with={"optimizer": "rmsprop"}
    )
    """Decay of RMSProp's averages."""
    rmsprop_centered: bool = option(False, group="Optimiser", only_with={"optimizer": "rmsprop"})
    """Divide by the square root of the gradient's variance instead of its mean square (Mnih et al.
    2015)."""
    clip_value: float | None = option(None, group="Optimiser", above=0, sweepable=True)
    """Clip each element of the gradient to this absolute value."""
    clip_norm: float | None = option(None, group="Optimiser", above=0, sweepable=True)
    """Clip the gradient to this global norm."""
    normalize_gradients: bool = option(False, group="Optimiser")
    """Scale every gradient to global norm 1."""

    exploration: Literal["epsilon_greedy", "boltzmann"] = option(
        "epsilon_greedy", group="Exploration"
    )
    """Exploration policy: uniformly random actions with probability epsilon, or a softmax of Q."""
    epsilon_start: float = option(
        1.0,
        group="Exploration",
        between=(0, 1),
        sweepable=True,
        swept_with={"epsilon_schedule": ("linear", "exponential")},
    )
    """Epsilon when learning starts."""
    epsilon_end: float = option(0.05, group="Exploration", between=(0, 1), sweepable=True)
    """Epsilon after epsilon_decay_rows."""
    epsilon_decay_rows: int = option(
        50_000, group="Exploration", at_least=1, formerly="epsilon_decay_steps"
    )
    """Rows after the warm-up over which epsilon falls."""
    epsilon_schedule: Literal["linear", "exponential", "constant"] = option(
        "linear", group="Exploration"
    )
    """Schedule of epsilon; constant stays at epsilon_end."""
    epsilon_repeat: float = option(0.0, group="Exploration", between=(0, 1))
    """Probability, multiplied by epsilon, of repeating the previous action before any other choice,
    so that random behaviour persists (cf. Dabney et al. 2021); for sparse rewards, with
    epsilon_greedy only."""
    epsilon_ladder: float | None = option(None, group="Exploration", at_least=0)
    """Exponent alpha: environment i of E explores with epsilon^(1 + alpha i/(E-1)) (Horgan et al.
    2018, eq. 1, with alpha = 7)."""
    temperature: float = option(
        1.0,
        group="Exploration",
        above=0,
        sweepable=True,
        swept_with={"exploration": "boltzmann"},
    )
    """Softmax temperature, in units of Q; boltzmann only."""
    noisy: bool = option(False, group="Exploration")
    """Explore by learned noise in the parameters of the dense layers (NoisyNet, Fortunato et al.
    2018). For noise without epsilon, set epsilon_schedule to constant and epsilon_end to 0."""
    noisy_sigma: float = option(0.5, group="Exploration", above=0, only_with={"noisy": True})
    """sigma_0, the initial scale of the noise."""

    replay: Literal["uniform", "prioritized"] = option(
        "uniform", group="Replay", only_with={"algorithm": "dqn"}
    )
    """Draws from the replay: uniform, or in proportion to priorities (Schaul et al. 2016)."""
    priority_exponent: float = option(
        0.6,
        group="Replay",
        between=(0, 1),
        sweepable=True,
        only_with={"replay": "prioritized"},
    )
    """alpha: the priority of a row is |TD error|^alpha. For a sequence the |TD error| is 0.9 times
    the maximum over its rows plus 0.1 times the mean (Kapturowski et al. 2019)."""
    importance_exponent: float = option(
        0.4,
        group="Replay",
        between=(0, 1),
        sweepable=True,
        only_with={"replay": "prioritized"},
    )
    """Initial beta, the exponent of the importance weights, which correct the bias of prioritised
    draws. It rises to 1, a full correction, over schedule_rows."""
    replay_capacity: int = option(
        32_768,
        group="Replay",
        at_least=1,
        below=COUNT_LIMIT,
        only_with={"algorithm": "dqn"},
    )
    """Rows stored; a multiple of num_envs * rollout_length."""
    warmup_rows: int = option(
        1_024,
        group="Replay",
        at_least=1,
        only_with={"algorithm": "dqn"},
        formerly="warmup_steps",
    )
    """Minimum number of rows collected by random actions before learning, rounded up to complete
    iterations."""
    replay_from: str | None = option(None, group="Replay", only_with={"algorithm": "dqn"})
    """File written by ``jaxdqn replay``. Its rows are added to the replay before the warm-up."""
    frame_stack: int = option(1, group="Replay", at_least=1)
    """S: frames stacked into one observation."""

    network: Literal["auto", "mlp", "minatar", "nature", "impala", "hadamax"] = option(
        "auto", group="Network"
    )
    """Torso; auto chooses mlp, minatar or nature by the shape of the observation. impala: residual
    convolutions (Espeholt et al. 2018). hadamax: products of two convolutions with max-pooling
    (Kooi et al. 2025)."""
    init_from: str | None = option(None, group="Network")
    """Directory of another run. The network starts from its best parameters where names and shapes
    match. Other parameters, such as a head for a different number of actions, are random."""
    hidden_sizes: tuple[int, ...] = option((128, 128), group="Network")
    """Widths of the layers of the MLP torso. An empty list makes Q linear; with
    one-hot observations, Q is then a table."""
    dense_size: int | None = option(
        None, group="Network", at_least=1, only_with={"network": CONVOLUTIONS}
    )
    """Width of the dense layer after the convolutions; by default 128 for minatar, 256 for impala,
    512 for nature and hadamax."""
    torso_width: int = option(1, group="Network", at_least=1, only_with={"network": "impala"})
    """Factor on the numbers of channels of the convolutions, which are 16, 32 and 32."""
    pool_size: int | None = option(
        None, group="Network", at_least=1, only_with={"network": "impala"}
    )
    """Height and width to which adaptive max-pooling reduces the output of the convolutions; by
    default there is no such pooling."""
    spectral_norm: bool = option(False, group="Network", only_with={"network": "impala"})
    """Divide the kernels of the residual blocks by their spectral norm, estimated by power
    iteration (Miyato et al. 2018; Clark et al. 2024)."""
    scale_observations: Literal["auto", "always", "never"] = option("auto", group="Network")
    """Divide observations by 255. auto divides pictures only: uint8 observations with at least
    three axes, [H, W, C] or stacked [H, W]. never is for uint8 pictures whose values are not
    intensities."""
    normalize_observations: bool = option(False, group="Network")
    """Normalise float observations by their running mean and variance, over all rows and devices
    since the start of the run. Evaluations and exported policies use these statistics without
    updating them."""
    channels: Literal["auto", "last", "first"] = option(
        "auto", group="Network", only_with={"network": ("auto", *CONVOLUTIONS)}
    )
    """Axis of the channels of a picture. last: [H, W, C]. first: [C, H, W], which is transposed.
    auto: last, but a shape is rejected if its first axis is smaller than both others, or if its
    other two axes are equal and differ from the first."""
    dueling: bool = option(False, group="Network")
    """Compute Q from a value stream and an advantage stream, each with the last dense layer of the
    torso (Wang et al. 2016)."""
    layer_norm: bool = option(False, group="Network")
    """Normalise the input of each activation (Ba et al. 2016)."""
    convolution: Literal["auto", "lax", "patches"] = option("auto", group="Network")
    """Implementation of convolutions; the parameters are the same."""
    precision: Literal["float32", "bfloat16"] = option("float32", group="Network")
    """Compute type of the network; parameters and losses are float32."""
    matmul_precision: Literal["default", "tensorfloat32", "float32"] = option(
        "default", group="Network"
    )
    """Precision of float32 matrix products and convolutions in acting, learning and evaluation.
    default: the value of JAX_DEFAULT_MATMUL_PRECISION if it is set, otherwise the fastest precision
    of the device, TF32 on NVIDIA GPUs and one pass of bfloat16 on TPUs. tensorfloat32: TF32 on
    GPUs, three passes of bfloat16 on TPUs. float32: full float32. On a CPU every choice is full
    float32. See docs/accelerators.md."""
    recurrent: Literal["none", "lstm", "gru", "custom"] = option("none", group="Recurrent network")
    """Recurrent cell after the torso, trained on sequences of rows (R2D2, Kapturowski et al.
    2019). custom: your own network has a carry."""
    recurrent_size: int = option(
        128, group="Recurrent network", at_least=1, only_with={"recurrent": _CELLS}
    )
    """Width of the cell."""
    sequence_length: int = option(
        16, group="Recurrent network", at_least=1, only_with={"recurrent": _RECURRENT}
    )
    """Rows of a sequence that are learned from; batch_size counts sequences."""
    burn_in: int = option(
        4, group="Recurrent network", at_least=0, only_with={"recurrent": _RECURRENT}
    )
    """Rows at the start of a sequence that only update the state of the cell."""
    sequence_stride: int | None = option(
        None, group="Recurrent network", at_least=1, only_with={"recurrent": _RECURRENT}
    )
    """Rows between the starts of consecutive sequences of an environment. The state of the cell is
    stored at these starts only. By default half of sequence_length; with 1 a sequence may start at
    any row."""
    rescale_values: bool = option(
        False, group="Recurrent network", only_with={"recurrent": _RECURRENT}
    )
    """Learn values on a compressed scale, h(x) = sign(x)(sqrt(|x| + 1) - 1) + 0.001 x
    (Pohlen et al. 2018)."""

    eval_episodes: int = option(100, group="Evaluation", at_least=1)
    """Greedy episodes per evaluation. On the device each episode has its own environment. On the
    host the episodes are divided over at most 32 environments (with env_processes, one per CPU)."""
    eval_epsilon: float = option(0.0, group="Evaluation", between=(0, 1))
    """Probability of a uniformly random action in evaluations; 0 is greedy."""
    eval_every: int = option(
        20_000, group="Evaluation", at_least=0, below=COUNT_LIMIT, everyday=True
    )
    """Rows between evaluations, rounded to complete chunks; 0 evaluates at the end only."""
    solve_return: float | None = option(None, group="Evaluation")
    """Mean greedy return that counts as solved if fresh episodes confirm it."""
    stop_when: Literal["never", "solved", "held"] = option(
        "never",
        group="Evaluation",
        everyday=True,
        formerly="stop_when_solved",
        former_values={False: "never", True: "solved"},
    )
    """Condition that ends the run before its budget. solved: an evaluation and then fresh episodes
    reached solve_return. held: ten consecutive evaluations, at least 5,000 rows apart, did."""

    checkpoint_every: int | None = option(None, group="Checkpoints", at_least=0)
    """Rows between checkpoints, rounded to complete chunks; 0 writes none. By default a checkpoint
    is written every five minutes."""
    checkpoint_signals: tuple[str, ...] = option(
        CHECKPOINT_SIGNALS, group="Checkpoints", choices=(*CHECKPOINT_SIGNALS, "SIGUSR2")
    )
    """Signals that end the run with a checkpoint, as Ctrl-C does. Choices: SIGTERM, SIGHUP (a
    closed terminal), SIGUSR1 and SIGUSR2 (sent by schedulers before the end of a job). A signal
    that the process ignores, such as SIGHUP under nohup, stays ignored."""
    keep: int = option(2, group="Checkpoints", at_least=1)
    """Number of newest checkpoints kept, in addition to the best one."""
    replay_in_checkpoint: bool = option(True, group="Checkpoints", only_with={"algorithm": "dqn"})
    """Save the replay in checkpoints. If off, checkpoints are small, but resuming is not exact: the
    replay is refilled by acting without learning, for as many iterations as in the warm-up."""

    guard: Literal["off", "skip", "rollback", "stop"] = option("stop", group="Non-finite values")
    """Treatment of a gradient step whose loss, gradient or parameters are not finite. skip: undo
    and count the step, and continue; the run fails if every step was undone. stop: undo the step
    and end the run. rollback: restore the last checkpoint and multiply the learning rate by
    rollback_factor, at most rollback_limit times. off: no check."""
    rollback_factor: float = option(0.5, group="Non-finite values", above=0, below=1)
    """Factor on the learning rate at each rollback."""
    rollback_limit: int = option(5, group="Non-finite values", at_least=1)
    """Maximum number of rollbacks; if another is needed, the run stops."""

    devices: int = option(1, group="Devices", at_least=1, parallel=True, everyday=True)
    """Number of devices. One learner divides its environments, batch and replay among them; several
    learners are divided among them."""
    model_devices: int = option(1, group="Devices", at_least=1, parallel=True)
    """Number of devices over which the wide layers of a replica are split; a divisor of devices."""
    mapping: Literal["shard_map", "pmap"] = option(
        "shard_map", group="Data parallelism", replicas_only=True
    )
    """JAX transformation that maps the step over devices; both give the same results."""
    average_every: int | None = option(
        None, group="Data parallelism", at_least=1, replicas_only=True
    )
    """Local SGD: gradient steps that each device takes on its own parameters before the parameters
    are averaged. By default gradients are averaged at every step instead."""
    average_moments: bool = option(False, group="Data parallelism", replicas_only=True)
    """Average the moments of the optimiser together with the parameters."""
    outer_optimizer: Literal["none", "nesterov"] = option(
        "none", group="Data parallelism", replicas_only=True
    )
    """With average_every: optimiser that applies the mean change of the replicas' parameters
    (DiLoCo, Douillard et al. 2023). none replaces the parameters by their mean."""
    outer_learning_rate: float = option(
        0.7,
        group="Data parallelism",
        above=0,
        replicas_only=True,
        only_with={"outer_optimizer": "nesterov"},
    )
    """Learning rate of the outer optimiser; 1 without momentum is plain averaging."""
    outer_momentum: float = option(
        0.9,
        group="Data parallelism",
        at_least=0,
        below=1,
        replicas_only=True,
        only_with={"outer_optimizer": "nesterov"},
    )
    """Nesterov momentum of the outer optimiser."""
    compression: Literal["none", "bfloat16", "int8", "top_k", "powersgd"] = option(
        "none", group="Data parallelism", replicas_only=True
    )
    """Compression of gradients sent between devices, with error feedback. powersgd sends low-rank
    factors of matrices (Vogels et al. 2019)."""
    top_k_fraction: float = option(
        0.01,
        group="Data parallelism",
        above=0,
        at_most=1,
        replicas_only=True,
        only_with={"compression": "top_k"},
    )
    """Fraction of the elements of the gradient that top_k sends."""
    powersgd_rank: int = option(
        2,
        group="Data parallelism",
        at_least=1,
        replicas_only=True,
        only_with={"compression": "powersgd"},
    )
    """Rank of the factors that powersgd sends."""

    extra_hyper: tuple[str, ...] = option((), group="Population")
    """Scalars for your own loss, exploration or learning, each as NAME=VALUE. They are traced, so
    that a sweep may vary them, and are read as hyper.extra[NAME]."""
    num_seeds: int = option(1, group="Population", at_least=1, parallel=True, everyday=True)
    """Number of independent learners in one program, with seeds seed, seed + 1, ..."""
    sweep: tuple[str, ...] = option((), group="Population", parallel=True)
    """Hyper-parameters to sweep, each as NAME=VALUE,VALUE,...; every combination is trained with
    every seed, all in one program."""
    population: Literal["auto", "vmap", "map"] = option("auto", group="Population", parallel=True)
    """Execution of several learners on a device: vmap steps them together, map one after the
    other; auto chooses vmap on accelerators and map on CPU."""


RULES = rules(Options)
"""Rule of each option, in order of declaration."""


def _names(attribute: str) -> tuple[str, ...]:
    return tuple(name for name, rule in RULES.items() if getattr(rule, attribute))


SWEEPABLE = _names("sweepable")
"""Options that are traced scalars of the training step, the fields of ``jaxdqn.types.Hyper``."""

REPLICA_OPTIONS = _names("replicas_only")
"""Options of data-parallel replicas; a single replica has their defaults."""

PARALLEL_OPTIONS = _names("parallel")
"""Options that configure devices or learners. With their defaults there is one learner on one
device."""
