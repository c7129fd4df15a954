"""Axis letters, units, and the arrays that pass between the parts.

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
Every period, schedule and budget says which of the three it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any
Params = Any

_COUNTER_BASE = 2**30


class EnvSpec(NamedTuple):
    """What a builder must know of an environment before it runs."""

    name: str
    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype
    num_actions: int
    max_episode_steps: int | None
    """The time limit in environment steps; None if the environment has none."""


class TimeStep(NamedTuple):
    """What an environment shows after a reset or a step.

    ``reward``, ``terminated`` and ``truncated`` are the consequence of the
    action just taken; after a reset they are zero and void.
    """

    obs: Array
    """[O]"""
    reward: Array
    """[] float32"""
    terminated: Array
    """[] bool; the episode ended in a terminal state: no bootstrap."""
    truncated: Array
    """[] bool; the episode was cut (time limit): bootstrap from ``obs``."""
    first: Array
    """[] bool; ``obs`` opens an episode."""


class Environment(NamedTuple):
    """One environment on the device; the caller vmaps it.

    Autoreset is *next-step*, as in Gymnasium's vector environments: the step
    that ends an episode returns its true final observation; the following
    step ignores its action, resets, and returns ``first=True``.
    """

    reset: Callable[[Array], tuple[PyTree, TimeStep]]
    """``reset(key) -> (env_state, timestep)``"""
    step: Callable[[Array, PyTree, Array], tuple[PyTree, TimeStep]]
    """``step(key, env_state, action) -> (env_state, timestep)``"""
    spec: EnvSpec


class Row(NamedTuple):
    """One observation, the action taken there, and its consequence.

    Leading axes are the holder's: none for an example, ``[K, E]`` when added
    to a replay, ``[B, L]`` in a sampled sequence. An episode's final
    observation stands in the row whose successor has ``first``; that row's
    action and consequence are void.
    """

    obs: Array
    """[..., O]; one frame where observations are stacked."""
    first: Array
    """[...] bool"""
    action: Array
    """[...] int32"""
    reward: Array
    """[...] float32, r_{t+1}"""
    terminated: Array
    """[...] bool, of t+1"""
    truncated: Array
    """[...] bool, of t+1; for statistics only, see ``jaxdqn.replay``"""
    extras: PyTree = ()
    """[...] any pytree, empty by default (recurrent carry, behaviour probability)."""


class Batch(NamedTuple):
    """Sampled n-step transitions, in the field's time-index notation."""

    obs_tm1: Array
    """[B, O] or, with frame stacks, [B, O, S]"""
    a_tm1: Array
    """[B] int32"""
    r_t: Array
    """[B] float32, the discounted sum of up to N rewards."""
    discount_t: Array
    """[B] float32, gamma^m where the return spans m steps, 0 if it ends in a terminal state."""
    obs_t: PyTree
    """[B, O] or [B, O, S], the bootstrap observation; empty where ``r_t`` is the target."""
    extras_tm1: PyTree = ()
    """[B, ...] extras of the start row."""


class SampleInfo(NamedTuple):
    """Where a batch was drawn from."""

    indices: Array
    """[B] int32, opaque; handed back to ``Replay.update``."""
    probabilities: Array
    """[B] float32, probability of each draw under this device's replay."""


class Replay(NamedTuple):
    """A replay of rows: implementations are interchangeable.

    ``T``, ``E``, the rows written at once and the batch are fixed when built.
    """

    init: Callable[[Row], PyTree]
    """``init(example_row) -> state``"""
    add: Callable[[PyTree, Row], PyTree]
    """``add(state, rows[K, E]) -> state``"""
    sample: Callable[[Array, PyTree, Array], tuple[Any, SampleInfo]]
    """``sample(key, state, gamma) -> (batch, info)``; consumes ``key``."""
    update: Callable[[PyTree, Array, Array], PyTree]
    """``update(state, indices[B], priorities[B]) -> state``; identity if uniform."""


class Atoms(NamedTuple):
    """Distributions of the return on fixed atoms."""

    logits: Array
    """[B, A, Z] float32"""
    atoms: Array
    """[B, Z] float32, evenly spaced, increasing"""


class Quantiles(NamedTuple):
    """Distributions of the return by their quantiles."""

    values: Array
    """[B, A, Z] float32"""
    fractions: Array
    """[B, Z] float32, the probabilities that the quantiles stand for"""


class QOutput(NamedTuple):
    """What a Q-network says of a batch of observations."""

    q_values: Array
    """[B, A] float32"""
    distribution: PyTree = ()
    """Whatever a distributional head adds (``Atoms``, ``Quantiles``); empty otherwise."""


class Network(NamedTuple):
    """A Q-network as three pure functions.

    ``apply`` consumes its key (noise); where that is None it computes without noise.
    Feed-forward networks pass the empty carry through and ignore ``first``.
    """

    init: Callable[[Array, Array], Params]
    """``init(key, obs[B, O]) -> params``"""
    apply: Callable[..., tuple[QOutput, PyTree]]
    """``apply(params, key, carry, obs[B, O], first[B]) -> (QOutput, carry)``"""
    initial_carry: Callable[[int], PyTree]
    """``initial_carry(batch_size) -> carry``"""
    noisy: bool = False
    """Whether a key is a set of noisy parameters, so that each environment acts with its own."""


class Exploration(NamedTuple):
    """How far acting departs from greedy, at one moment."""

    epsilon: Array
    """[E] float32, probability of a uniformly random action."""
    temperature: Array
    """[] float32, of the softmax; read by Boltzmann exploration alone."""
    repeat: PyTree = ()
    """[E] float32, probability of repeating the previous action; empty where none is repeated."""
    previous: PyTree = ()
    """[E] int32, the previous action, with ``repeat``."""


class ActInfo(NamedTuple):
    """What acting knows besides the actions."""

    q: Array
    """[E, A] float32"""
    behaviour_prob: Array
    """[E] float32, probability that the behaviour policy gave the chosen action."""


class LearnInfo(NamedTuple):
    """Diagnostics of one gradient step."""

    loss: Array
    """[] float32"""
    abs_td: Array
    """[B] float32, |TD error| of each example, the raw priority."""
    grad_norm: Array
    """[] float32, global norm of this device's gradient, before it is averaged or clipped."""
    q_mean: Array
    """[] float32, mean Q of the actions in the batch."""


class AgentState(NamedTuple):
    """What a learner learns."""

    params: Params
    target_params: Params
    """empty where nothing is bootstrapped from them"""
    opt_state: PyTree
    since_target: Array
    """[] int32, gradient steps since the target network was last replaced."""


class Agent(NamedTuple):
    """Network, loss and optimiser behind three pure functions."""

    init: Callable[..., AgentState]
    """``init(key, obs[B, O], *, hyper) -> AgentState``"""
    act: Callable[..., tuple[Array, PyTree, ActInfo]]
    """``act(key, params, carry, obs[E, O], first[E], exploration) -> (actions[E], carry, info)``;
    with None for the exploration greedy, without noise, and the key is not used."""
    learn: Callable[..., tuple[AgentState, LearnInfo]]
    """``learn(key, state, batch, weights[B], *, hyper) -> (state, info)``"""
    initial_carry: Callable[[int], PyTree]
    """``initial_carry(E) -> carry``"""


class Hyper(NamedTuple):
    """The scalars that a population may sweep: float32 leaves, traced, never shapes."""

    learning_rate: Array
    gamma: Array
    epsilon_start: Array
    epsilon_end: Array
    temperature: Array
    huber_delta: Array
    clip_value: Array
    clip_norm: Array
    target_tau: Array
    priority_exponent: Array
    importance_exponent: Array
    """at the start of the run"""
    entropy_temperature: Array
    munchausen_scale: Array
    munchausen_clip: Array
    trace_decay: Array


class Counter(NamedTuple):
    """A count that does not overflow: ``high * 2**30 + low``, each [] int32."""

    high: Array
    low: Array


class Counters(NamedTuple):
    """Totals since the start of the run, over all devices."""

    rows: Counter
    env_steps: Counter
    gradient_steps: Counter


class EpisodeStats(NamedTuple):
    """Return and length of the episode in progress of each environment."""

    episode_return: Array
    """[E] float32"""
    episode_length: Array
    """[E] int32, environment steps"""


class ActorState(NamedTuple):
    """The acting side of a run on one device."""

    env_state: PyTree
    timestep: TimeStep
    """leaves [E, ...]"""
    frames: PyTree
    """[E, O, S] the stacked observation, or empty where nothing is stacked."""
    carry: PyTree
    episode: EpisodeStats
    action: Array
    """[E] int32, the last action"""


class TrainState(NamedTuple):
    """Everything a run is, on one device; saving it and loading it continues the run."""

    key: Array
    hyper: Hyper
    agent: AgentState
    replay: PyTree
    actor: ActorState
    counters: Counters


class Metrics(NamedTuple):
    """What one iteration, or one chunk of them, has to report; leaves [], of a population [P].

    The first block adds up over iterations (but for ``first_skipped``), the second is averaged.
    """

    rows: Array
    env_steps: Array
    gradient_steps: Array
    episodes: Array
    """int32, episodes that ended"""
    return_sum: Array
    """float32, over the episodes that ended"""
    length_sum: Array
    """float32, environment steps, over the episodes that ended"""
    skipped: Array
    """int32, gradient steps that the guard undid, since something was not finite; counted among
    ``gradient_steps``"""
    first_skipped: Array
    """int32, how many gradient steps came before the first of those; void if there is none"""
    lost: Array
    """int32, 1 if at the end of a chunk the parameters are not finite"""
    averagings: Array
    """int32, times that the replicas' parameters were averaged; 0 where gradients are"""
    gap_sum: Array
    """float32, over those times: the replicas' distance from their mean (root mean square over
    replicas) over the norm of the mean, just before"""

    loss: Array
    grad_norm: Array
    """global norm of a gradient before it is clipped: over D devices the mean of the norms of their
    own gradients. ``clip_norm`` sees the norm of the mean gradient, which is at most that."""
    q_mean: Array
    epsilon: Array
    """mean over environments"""


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
)


class Trainer(NamedTuple):
    """A training run: mappings take one and give one."""

    init: Callable[..., TrainState]
    """``init(key, hyper=defaults) -> TrainState``, warm-up included; consumes ``key``."""
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    """One iteration: K vector steps, then M gradient steps."""
    agent: Agent
    environment: Environment
    refill: Callable[[TrainState], TrainState]
    """Empties the replay and fills it by acting for as long as the warm-up, with the exploration
    that the counters call for; for a state that was saved without its replay, ``replay=()``."""
    preload: Callable[..., TrainState]
    """``preload(key, rows[I, K, E], hyper=defaults) -> TrainState``: as ``init``, the replay
    holding the rows before the warm-up's; each environment's must end where an episode is cut."""
    chunk: Callable[[int], Callable[[TrainState], tuple[TrainState, Metrics]]]
    """``chunk(iterations)``: as many steps in one, their metrics reduced. What devices need not
    agree on at every step they say once a chunk, and where parameters are averaged less often
    than once an iteration, only a chunk does it."""
    sharding: Callable[[PyTree], PyTree] | None = None
    """``sharding(state) -> the NamedSharding of each leaf`` of a state, or of its shapes; None
    where everything is on one device."""
    params: Callable[[PyTree], Params] = lambda state: state.agent.params
    """``params(state)``: the online parameters for the host, not copied: those of this process's
    first replica; for a population, leaves [P]. Given the shapes of a state (with shardings where
    ``sharding`` is set), return theirs."""
    counters: Callable[[TrainState], Counters] = lambda state: state.counters
    """``counters(state)``, traceable: the counters of one replica; for a population, leaves [P]."""
    over_params: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    """Lift ``function(params, key, count)`` of one learner to what ``params`` returns, run on the
    devices that hold it; for a population, to parameters and keys [P] and one count."""
    replicas: int = 1
    """How many replicas speak to each other in the step: ``size`` of its collectives."""
    mapped: bool = False
    """Whether a mapping made it, so that leaves of the state have an axis [D] or [P] outside."""


def make_counter(value: int = 0) -> Counter:
    """Return a counter that holds ``value`` (a Python int of any size below 2**61)."""
    high, low = divmod(value, _COUNTER_BASE)
    return Counter(high=jnp.int32(high), low=jnp.int32(low))


def counter_add(counter: Counter, increment: Array) -> Counter:
    """Add a non-negative int32 below 2**30."""
    low = counter.low + increment
    carry = low // _COUNTER_BASE
    return Counter(high=counter.high + carry, low=low - carry * _COUNTER_BASE)


def counter_float(counter: Counter) -> Array:
    """Return the count as float32, exact to one part in 2**24; for schedules."""
    high = counter.high.astype(jnp.float32) * float(_COUNTER_BASE)
    return high + counter.low.astype(jnp.float32)


def counter_int(counter: Counter) -> int:
    """Return the count as a Python int; blocks until the counter is computed."""
    return int(counter.high) * _COUNTER_BASE + int(counter.low)
