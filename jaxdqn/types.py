"""Axis letters, units, and the types that pass between the parts of the library.

Axis letters, used in every docstring of the library:

====== ==========================================================
``E``  environments per device
``K``  vector steps per iteration
``M``  gradient steps per iteration
``B``  batch per device
``N``  length of an n-step return
``S``  frames in a stacked observation
``A``  actions
``Z``  atoms or quantiles
``T``  rows of replay per environment
``L``  rows in a sampled sequence
``D``  devices
``P``  population size
``O``  shape of one observation (or one frame), may be several axes
====== ==========================================================

Units: a *row* is one environment advanced or reset once; an *environment
step* is a row that is not a reset; a *gradient step* is one optimiser update.
Every period, schedule and budget states which of the three it counts.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.config.options import SWEEPABLE

Array = jax.Array
PyTree = Any
Params = Any
Reset = Literal["every-step", "pooled"]

COUNTER_BASE = 2**30


class EnvSpec(NamedTuple):
    """Static properties of an environment, needed to build a network and a replay."""

    name: str
    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype
    num_actions: int
    max_episode_steps: int | None
    """Time limit in environment steps; None if there is none."""
    arguments: tuple[str, ...] = ()
    """Arguments that differ from the environment's defaults, as NAME=VALUE; empty if it reports
    none."""
    terminates_within_episodes: bool = False
    """True if ``terminated`` may be set within an episode, for example at the loss of a life. There
    is then no bootstrap, but also no reset, and an episode ends where the next episode begins."""
    masked: bool = False
    """True if time steps have a mask of legal actions."""


class TimeStep(NamedTuple):
    """Output of an environment after a reset or a step.

    ``reward``, ``terminated`` and ``truncated`` are the consequence of the
    action just taken. After a reset they are zero and carry no meaning.
    """

    obs: Array
    """[O]"""
    reward: Array
    """[] float32"""
    terminated: Array
    """[] bool, the action led to a terminal state: no bootstrap. This ends the episode unless
    ``EnvSpec.terminates_within_episodes``."""
    truncated: Array
    """[] bool, the episode was cut, for example by a time limit: bootstrap from ``obs``."""
    first: Array
    """[] bool, ``obs`` is the first observation of an episode."""
    legal: PyTree = ()
    """[A] bool, the legal actions at ``obs``; empty if every action is legal. The final state of an
    episode may have no legal action."""


class Environment(NamedTuple):
    """One environment on the device, as two pure functions; the caller vmaps it.

    Autoreset is *next-step*, as in Gymnasium's vector environments. The step
    that ends an episode returns the true final observation. The following
    step ignores its action, resets, and returns ``first=True``.
    """

    reset: Callable[[Array], tuple[PyTree, TimeStep]]
    """``reset(key) -> (env_state, timestep)``"""
    step: Callable[[Array, PyTree, Array], tuple[PyTree, TimeStep]]
    """``step(key, env_state, action) -> (env_state, timestep)``"""
    spec: EnvSpec
    render: Callable[[PyTree], Any] | None = None
    """``render(env_state) -> frame``, uint8 [height, width, 3], called on the host outside jit;
    None if the environment cannot be drawn."""


class Row(NamedTuple):
    """One observation, the action taken there, and its consequence.

    The leading axes ``[...]`` depend on the context: none for an example row,
    ``[K, E]`` when rows are added to a replay, ``[B, L]`` in sampled sequences.
    The row before a row with ``first`` holds the final observation of an
    episode; the action and the consequence in it are invalid.
    """

    obs: Array
    """[..., O], a single frame if observations are stacked"""
    first: Array
    """[...] bool, ``obs`` is the first observation of an episode."""
    action: Array
    """[...] int32"""
    reward: Array
    """[...] float32, the reward of the action, r_{t+1}"""
    terminated: Array
    """[...] bool, the action led to a terminal state."""
    truncated: Array
    """[...] bool, the episode was cut after the action; used only for statistics."""
    extras: PyTree = ()
    """Leaves [..., *], such as a recurrent carry or a behaviour probability; empty by default."""
    legal: PyTree = ()
    """[..., A] bool, the legal actions at ``obs``; empty if every action is legal"""


class Path(NamedTuple):
    """Steps of sampled n-step returns.

    Step j of a return leads to *its row*, the j-th row after the start. After the last step of the
    return, ``included`` is False and the other values are arbitrary.
    """

    r_t: Array
    """[B, N] float32, reward of each step"""
    discount_t: Array
    """[B, N] float32, gamma, or 0 where the step terminates"""
    included: Array
    """[B, N] bool, the step belongs to the return"""
    obs_t: Array
    """[B, N, O] or [B, N, O, S], the observation of its row"""
    a_t: Array
    """[B, N] int32, the action of its row; invalid for the last step of a return"""
    behaviour_prob_t: Array
    """[B, N] float32, probability of that action when it was chosen"""
    legal_t: PyTree = ()
    """[B, N, A] bool, the legal actions of its row; empty if every action is legal"""


class Batch(NamedTuple):
    """Sampled n-step transitions; ``tm1`` is the start row, ``t`` the bootstrap row."""

    obs_tm1: Array
    """[B, O], or [B, O, S] with frame stacks"""
    a_tm1: Array
    """[B] int32"""
    r_t: Array
    """[B] float32, discounted sum of up to N rewards"""
    discount_t: Array
    """[B] float32, gamma^m for a return over m steps, 0 if it ends in a terminal state"""
    obs_t: PyTree
    """[B, O] or [B, O, S], the bootstrap observation; empty if ``r_t`` is already the target, or if
    ``path`` contains this observation."""
    extras_tm1: PyTree = ()
    """[B, ...], extras of the start row"""
    legal_tm1: PyTree = ()
    """[B, A] bool, the legal actions at ``obs_tm1``; empty if every action is legal"""
    legal_t: PyTree = ()
    """[B, A] bool, the legal actions at ``obs_t``; empty if every action is legal, and with
    ``path``"""
    path: PyTree = ()
    """``Path``, the steps of the return; empty without importance ratios"""


class SampleInfo(NamedTuple):
    """Indices and probabilities of a sampled batch."""

    indices: Array
    """[B] int32, opaque; passed back to ``Replay.update``."""
    probabilities: Array
    """[B] float32, probability of each draw in this device's replay"""


class Replay(NamedTuple):
    """Replay of rows as four pure functions; implementations are interchangeable.

    ``T``, ``E``, ``B`` and the number of rows per ``add`` are fixed at construction.
    """

    init: Callable[[Row], PyTree]
    """``init(example_row) -> state``"""
    add: Callable[[PyTree, Row], PyTree]
    """``add(state, rows[K, E]) -> state``"""
    sample: Callable[[Array, PyTree, Array], tuple[Any, SampleInfo]]
    """``sample(key, state, gamma) -> (batch, info)``; consumes ``key``."""
    update: Callable[[PyTree, Array, Array], PyTree]
    """``update(state, indices[B], priorities[B]) -> state``; the identity for uniform replay."""


class Atoms(NamedTuple):
    """Categorical return distributions on fixed atoms."""

    logits: Array
    """[B, A, Z] float32"""
    atoms: Array
    """[B, Z] float32, evenly spaced, increasing"""


class Quantiles(NamedTuple):
    """Return distributions given by their quantiles."""

    values: Array
    """[B, A, Z] float32"""
    fractions: Array
    """[B, Z] float32, cumulative probability of each quantile"""


class QOutput(NamedTuple):
    """Output of a Q-network for a batch of observations."""

    q_values: Array
    """[B, A] float32"""
    distribution: PyTree = ()
    """``Atoms`` or ``Quantiles`` of a distributional head; empty otherwise."""


class Network(NamedTuple):
    """Q-network as pure functions.

    ``apply`` consumes its key to draw noise; with ``key=None`` it runs without noise.
    Feed-forward networks pass the empty carry through and ignore ``first``.
    """

    init: Callable[[Array, Array], Params]
    """``init(key, obs[B, O]) -> params``"""
    apply: Callable[..., tuple[QOutput, PyTree]]
    """``apply(params, key, carry, obs[B, O], first[B]) -> (QOutput, carry)``"""
    initial_carry: Callable[[int], PyTree]
    """``initial_carry(batch_size) -> carry``"""
    noisy: bool = False
    """True if the key draws parameter noise; each environment then acts with a separate key."""
    unroll: Callable[..., tuple[QOutput, PyTree]] | None = None
    """``unroll(params, key, carry, obs[L, B, O], first[L, B]) -> (QOutput, carry)``: ``apply`` to L
    consecutive rows, with outputs [L, B, ...]. If None, learning scans ``apply`` over the rows."""
    refresh: Callable[[Params], Params] | None = None
    """``refresh(params) -> params``: after each gradient step, update values that are derived from
    the parameters and have no gradient, such as the vectors of power iteration. None if there are
    no such values."""


class ObservationStatistics(NamedTuple):
    """Running statistics of the observations, equal on all devices."""

    mean: Array
    """[O] float32"""
    variance: Array
    """[O] float32"""
    rows: Array
    """[] float32, number of rows in the statistics"""


class NormalizedParams(NamedTuple):
    """Parameters of a network that normalises its observations."""

    network: Params
    observations: ObservationStatistics


def trained_params(params: Params) -> Params:
    """Return the part of the parameters that the optimiser changes."""
    return params.network if isinstance(params, NormalizedParams) else params


def with_trained_params(params: Params, trained: Params) -> Params:
    """Return the parameters with the trained part replaced."""
    return params._replace(network=trained) if isinstance(params, NormalizedParams) else trained


class Exploration(NamedTuple):
    """Exploration parameters of one vector step."""

    epsilon: Array
    """[E] float32, probability of a uniformly random action"""
    temperature: Array
    """[] float32, temperature of the softmax; read only by Boltzmann exploration."""
    repeat: PyTree = ()
    """[E] float32, probability of repeating the previous action; empty if actions never repeat."""
    previous: PyTree = ()
    """[E] int32, the previous action; empty if ``repeat`` is empty."""
    legal: PyTree = ()
    """[E, A] bool, the legal actions; empty if every action is legal."""


Explore = Callable[[Array, Array, Exploration], tuple[Array, Array]]
"""Custom exploration, ``explore(key, q[E, A], exploration) -> (actions[E], behaviour_prob[E])``.

It consumes ``key``. The actions are int32, and their probabilities under the behaviour policy are
float32. Epsilon is 1 during the warm-up, where actions should be random. If ``exploration.repeat``
is not empty, the function itself must repeat previous actions. If ``exploration.legal`` is not
empty, it must choose actions that are True there; ``q`` of the others is ``jaxdqn.losses.ILLEGAL``.
A run that takes an illegal action ends with an error.
"""


class ActInfo(NamedTuple):
    """Diagnostics of ``act``."""

    q: Array
    """[E, A] float32, ``jaxdqn.losses.ILLEGAL`` for illegal actions"""
    behaviour_prob: Array
    """[E] float32, probability of the chosen action under the behaviour policy"""


class LearnInfo(NamedTuple):
    """Diagnostics of one gradient step."""

    loss: Array
    """[] float32"""
    abs_td: Array
    """[B] float32, from which priorities are computed: |TD error| of each example, for categorical
    losses a divergence, for sequences a mixture of maximum and mean over the rows"""
    grad_norm: Array
    """[] float32, global norm of this device's gradient, before averaging and clipping"""
    q_mean: Array
    """[] float32, mean Q of the actions in the batch"""
    extra: PyTree = ()
    """Metrics of the loss, a dict of [] float32 by name; empty if there are none."""
    diagnostics: PyTree = ()
    """A dict of float32 arrays by name, [] or [bins]; empty without ``Config.diagnostics``."""


class AgentState(NamedTuple):
    """Parameters and optimiser state."""

    params: Params
    target_params: Params
    """Empty if the loss does not bootstrap."""
    opt_state: PyTree
    since_target: Array
    """[] int32, gradient steps since the last copy to the target network; 0 without such copies"""


class Agent(NamedTuple):
    """Network, loss and optimiser as pure functions."""

    init: Callable[..., AgentState]
    """``init(key, obs[B, O], *, hyper) -> AgentState``"""
    act: Callable[..., tuple[Array, PyTree, ActInfo]]
    """``act(key, params, carry, obs[E, O], first[E], exploration, legal=()) -> (actions[E], carry,
    info)``. With ``exploration=None`` the actions are greedy, without noise, and the key is not
    used. ``legal`` is [E, A] bool, and passed only if the environment masks actions."""
    learn: Callable[..., tuple[AgentState, LearnInfo]]
    """``learn(key, state, batch, weights[B], *, hyper) -> (state, info)``: one gradient step"""
    initial_carry: Callable[[int], PyTree]
    """``initial_carry(E) -> carry``"""
    target_period: int | None = None
    """Gradient steps between two copies of the parameters to the target network; ``since_target``
    becomes 0 at a copy. None for Polyak averaging or without a target network."""
    gradient: Callable[..., tuple[Params, LearnInfo]] | None = None
    """``gradient(key, state, batch, weights[B], *, hyper) -> (grads, info)``: the first half of
    ``learn``. It reads only the online and target parameters of ``state``. None if ``learn`` cannot
    be divided."""
    apply: Callable[..., AgentState] | None = None
    """``apply(state, grads, loss, *, hyper) -> state``: the second half of ``learn``; None if
    ``gradient`` is None."""


if TYPE_CHECKING:

    class _Scalars(tuple[Array, ...]):
        """Named tuple of arrays; its fields, ``SWEEPABLE``, are unknown to type checkers."""

        _fields: ClassVar[tuple[str, ...]]
        extra: dict[str, Array]

        def __new__(cls, **values: Any) -> Self: ...
        def __getattr__(self, name: str) -> Array: ...
        def _replace(self, **values: Any) -> Self: ...
        def _asdict(self) -> dict[str, Any]: ...

else:
    _Scalars = namedtuple("_Scalars", (*SWEEPABLE, "extra"), defaults=({},))


class Hyper(_Scalars):
    """Scalars that a population may sweep: traced float32 leaves [], in a population [P].

    The fields are the options declared as sweepable in ``jaxdqn.config.options``, in order of
    declaration; the help of an option explains its field. The last field, ``extra``, is a dict of
    the custom scalars of ``Config.extra_hyper``, without leaves if there are none.
    """

    __slots__ = ()


BatchLoss = Callable[[Params, Params, Array, Any, Hyper], tuple[Array, dict[str, Array]]]
"""Custom loss, ``loss(params, target_params, key, batch, hyper) -> (losses[B], info)``.

The function applies the network itself and must stop the gradient of its targets. ``batch`` is a
``Batch``; for a recurrent network it is a ``Row`` of sequences, leaves [B, L, ...].
``target_params`` is empty for PQN. The optimiser minimises the mean of the losses, times the
importance weights of a prioritised replay. ``info`` is a dict of float32 arrays, [] or [B].
``abs_td`` [B] determines the priorities; its default is the absolute loss. ``q_mean`` is the mean Q
that is logged; for transitions it is computed if missing. Any other name is a metric, logged as the
mean over the batch.
"""


class Counter(NamedTuple):
    """Count ``high * 2**30 + low`` that does not overflow; both fields are [] int32."""

    high: Array
    low: Array


class Counters(NamedTuple):
    """Totals over all devices since the start of the run."""

    rows: Counter
    env_steps: Counter
    gradient_steps: Counter


class EpisodeStats(NamedTuple):
    """Current return and length of the running episode of each environment."""

    episode_return: Array
    """[E] float32"""
    episode_length: Array
    """[E] int32, environment steps"""


class ActorState(NamedTuple):
    """State of acting on one device: environments, episodes and recurrent carry."""

    env_state: PyTree
    timestep: TimeStep
    """Leaves [E, ...]."""
    frames: PyTree
    """[E, O, S], the stacked observation; empty without frame stacks."""
    carry: PyTree
    """Recurrent carry, leaves [E, ...]; empty for feed-forward networks."""
    episode: EpisodeStats
    action: Array
    """[E] int32, the last action"""


class TrainState(NamedTuple):
    """Complete training state on one device; restoring it resumes the run exactly."""

    key: Array
    hyper: Hyper
    agent: AgentState
    replay: PyTree
    actor: ActorState
    counters: Counters


class Metrics(NamedTuple):
    """Metrics of one iteration or of one chunk; leaves [], or [P] for a population.

    While a chunk runs, environment steps and episodes are counted per environment, leaves [E];
    ``jaxdqn.training.metrics.over_envs`` sums them at its end.

    Over the iterations of a chunk, the fields in ``SUMMED_METRICS`` are summed and the others are
    averaged, except ``first_skipped``.
    """

    rows: Array
    """int32"""
    env_steps: Array
    """int32"""
    gradient_steps: Array
    """int32"""
    episodes: Array
    """int32, episodes that ended"""
    return_sum: Array
    """float32, sum of the returns of the episodes that ended"""
    length_sum: Array
    """float32, sum of the lengths of these episodes in environment steps"""
    skipped: Array
    """int32, gradient steps that the guard undid because a value was not finite; they are
    included in ``gradient_steps``."""
    first_skipped: Array
    """int32, gradient steps before the first skipped step; invalid if no step was skipped."""
    lost: Array
    """int32, 1 if the parameters are not finite at the end of the chunk"""
    averagings: Array
    """int32, number of averagings of the replicas' parameters; 0 if gradients are averaged."""
    gap_sum: Array
    """float32, sum over these averagings of the root-mean-square distance of the replicas from
    their mean, divided by the norm of the mean"""

    loss: Array
    """float32, mean over gradient steps"""
    grad_norm: Array
    """float32, global norm of a device's gradient before clipping, mean over gradient steps and
    devices. ``clip_norm`` applies to the norm of the mean gradient, which is not larger than this
    mean of norms."""
    q_mean: Array
    """float32, mean Q of the actions in the batches"""
    epsilon: Array
    """float32, mean over environments"""
    extra: dict[str, Array]
    """float32, mean over gradient steps of each metric in ``LearnInfo.extra``, by name"""
    illegal: PyTree = ()
    """int32, number of environment steps with an illegal action; one such step ends the run. Empty
    without masks."""
    diagnostics: PyTree = ()
    """float32, mean over gradient steps of each of ``LearnInfo.diagnostics``"""


SUMMED_METRICS = (
    "rows",
    "env_steps",
    "gradient_steps",
    "episodes",
    "return_sum",
    "length_sum",
    "skipped",
    "lost",
    "averagings",
    "gap_sum",
    "illegal",
)
"""Fields of ``Metrics`` that are added up over iterations."""

RESERVED_METRICS = (
    *Metrics._fields,
    "chunk",
    "seconds",
    "train_seconds",
    "eval_seconds",
    "env_steps_per_second",
    "gradient_steps_per_second",
    "return_mean",
    "length_mean",
    "replica_gap",
    "learners",
)
"""Names in the records of chunks, which custom metrics may not have."""


class _TrainerFields(NamedTuple):
    """Fields of ``Trainer``."""

    init: Callable[..., TrainState]
    """``init(key, hyper=defaults) -> TrainState``, including the warm-up; consumes ``key``."""
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    """One iteration: K vector steps, then M gradient steps."""
    agent: Agent
    environment: Environment
    refill: Callable[[TrainState], TrainState]
    """``refill(state) -> state``: empty the replay and repeat the warm-up with the exploration of
    the current counters. For a state that was saved without its replay, ``replay=()``."""
    preload: Callable[..., TrainState]
    """``preload(key, rows[I, K, E], hyper=defaults) -> TrainState``: like ``init``, but with
    ``rows`` in the replay before the rows of the warm-up. Each environment's rows must end where an
    episode ends or is cut, because the warm-up starts new episodes."""
    chunk: Callable[[int], Callable[[TrainState], tuple[TrainState, Metrics]]]
    """``chunk(iterations)``: a function that runs these iterations and reduces their metrics.
    Devices communicate metrics once per chunk. If parameters are averaged less often than once per
    iteration, only ``chunk`` averages them; ``step`` does not."""
    sharding: Callable[[PyTree], PyTree] | None = None
    """``sharding(state) -> NamedSharding of each leaf``, for a state or its shapes; None on a
    single device."""
    params: Callable[[PyTree], Params] = lambda state: state.agent.params
    """``params(state)``: the online parameters for the host, taken from this process's first
    replica without a transfer between devices; for a population, leaves [P, ...]. Given the shapes
    of a state (with shardings if ``sharding`` is set), it returns the shapes of the parameters."""
    counters: Callable[[TrainState], Counters] = lambda state: state.counters
    """``counters(state)``, traceable: the counters of one replica; for a population, leaves [P]."""
    over_params: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    """``over_params(function)``: map ``function(params, key, count)`` of one learner over the
    result of ``params``, on the devices that hold it. For a population the mapped function takes
    parameters with leaves [P, ...], keys [P] and one count."""
    replicas: int = 1
    """Number of data-parallel replicas: ``size`` of the step's collectives"""
    mapped: bool = False
    """True if a mapping made this trainer: the leaves of the state then have a leading axis
    [D] or [P]"""
    reset: Reset = "every-step"
    """Resets of the environments: ``Config.reset``, or what ``auto`` chose"""
    chunk_of: Callable[[Callable[..., Any]], Callable[[int], Callable[..., Any]]] | None = None
    """``chunk_of(step) -> chunk`` for a custom ``step``; None if there is no such chunk."""


class Trainer(_TrainerFields):
    """Pure functions of a training run; a mapping takes a trainer and returns a trainer."""

    __slots__ = ()

    def _replace(self, **parts: Any) -> Self:
        """Return the trainer with some functions replaced.

        If ``step`` is replaced without ``chunk``, ``chunk`` runs the new step, and devices
        communicate metrics at every step.

        Raises:
          ValueError: if ``agent`` or ``environment`` is replaced, to which the functions are bound,
            or if ``step`` is replaced without ``chunk`` in a trainer that is mapped or has no
            ``chunk_of``.
        """
        for name in ("agent", "environment"):
            if name in parts and parts[name] is not getattr(self, name):
                raise ValueError(
                    f"{name}: must be passed to make_trainer, not replaced in a trainer, whose "
                    f"functions are bound to its {name}"
                )
        if "step" in parts and "chunk" not in parts:
            if self.mapped or self.chunk_of is None:
                raise ValueError(
                    "step: must be replaced before the trainer is mapped, with average_every at "
                    "most the gradient steps of an iteration; or replace chunk too"
                )
            parts["chunk"] = self.chunk_of(parts["step"])
        return super()._replace(**parts)

    __replace__ = _replace


def make_counter(value: int = 0) -> Counter:
    """Return a counter of ``value``, a Python int below 2**61."""
    high, low = divmod(value, COUNTER_BASE)
    return Counter(high=jnp.int32(high), low=jnp.int32(low))


def counter_add(counter: Counter, increment: Array) -> Counter:
    """Return the counter plus ``increment``, [] int32 from 0 to 2**30 - 1."""
    low = counter.low + increment
    carry = low // COUNTER_BASE
    return Counter(high=counter.high + carry, low=low - carry * COUNTER_BASE)


def counter_float(counter: Counter) -> Array:
    """Return the count as [] float32, exact to one part in 2**24, for schedules."""
    high = counter.high.astype(jnp.float32) * float(COUNTER_BASE)
    return high + counter.low.astype(jnp.float32)


def counter_int(counter: Counter) -> int:
    """Return the count as a Python int; blocks until the counter is computed."""
    return int(counter.high) * COUNTER_BASE + int(counter.low)
