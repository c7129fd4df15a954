"""Parts of an iteration: counted by hand and by XLA, timed, and compared with the roofline."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import hand
from benchmarks.roofline.device import BFLOAT16_MATRICES, DeviceRates
from benchmarks.timing import alternate, spread
from benchmarks.workloads import (
    Part,
    Prepared,
    act_part,
    learning_parts,
    prepare_learning,
    prepare_part,
    varied,
    zeros_of,
)
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import observed
from jaxdqn.training.algorithms import make_learning
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.keys import split_named
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Array, Batch, LearnInfo, PyTree, Row, Trainer, TrainState

PARTS = ("act", "draw", "learn")


class PreparedPreset(NamedTuple):
    """Compiled parts of an iteration, and the compiled iteration."""

    config: Config
    programs: dict[str, Prepared]
    by_hand: dict[str, hand.Work]


def prepare_preset(config: Config, repetitions: int) -> PreparedPreset:
    """Compile the parts of an iteration, and the whole iteration.

    Args:
        config: configuration of a run with an MLP or the MinAtar network.
        repetitions: number of repetitions of each part, and of iterations, in one call.
    """
    trainer = make_trainer(config)
    state = jax.jit(trainer.init)(jax.random.key(config.seed))
    parts = parts_of(config, trainer, state)
    programs = {name: prepare_part(part, repetitions) for name, part in parts.items()}
    programs["iteration"] = prepare_learning(config, repetitions)
    return PreparedPreset(config, programs, work_by_hand(config, trainer, state))


def measure_preset(
    prepared: PreparedPreset, device: DeviceRates, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure the parts of an iteration, and the whole iteration.

    Args:
        prepared: compiled parts.
        device: rates of the device.
        rounds: number of measurements of each part.
        seconds: approximate minimum duration of one measurement.

    Returns:
        ``precision``, whose rate bounds the products, and ``parts``: for act, draw, learn and
        iteration, the repetitions in an iteration, operations and bytes by hand and by XLA, the
        floor time, the measured time and the share of the floor in it. The floor of an iteration is
        the sum over its parts, without the environment and the writes to the replay.
    """
    config, by_hand = prepared.config, prepared.by_hand
    cases = {name: program.case for name, program in prepared.programs.items()}
    times = alternate(cases, rounds=rounds, seconds=seconds)
    counts = {**hand.iteration_counts(config), "iteration": 1}
    precision = precision_of(config)
    rates = device.flops[precision], device.bytes
    floors = {name: hand.floor_seconds(by_hand[name], *rates) for name in PARTS}
    floors["iteration"] = sum(counts[name] * floors[name] for name in PARTS)
    found = {}
    for name, program in prepared.programs.items():
        measured, work = spread(times[name]).median, by_hand[name]
        has_loops = name == "iteration" and max(counts.values()) > 1
        flops, size = (None, None) if has_loops else xla_cost(program.compiled)
        found[name] = {
            "count": counts[name],
            "flops_by_hand": work.flops,
            "flops_by_xla": flops,
            "bytes_by_hand": work.bytes,
            "bytes_by_xla": size,
            "floor_us": 1e6 * floors[name],
            "us": 1e6 * measured,
            "share": floors[name] / measured,
        }
    return {"precision": precision, "parts": found}


def xla_cost(compiled: Any) -> tuple[float, float]:
    """Return the operations and bytes of one pass of a compiled loop by XLA's cost analysis.

    XLA counts the body of a loop once, regardless of its trip count. The few operations outside the
    loop are counted too.
    """
    found = compiled.cost_analysis()
    return float(found.get("flops", 0.0)), float(found.get("bytes accessed", 0.0))


def precision_of(config: Config) -> str:
    """Return the key of the rate in ``DeviceRates.flops`` that bounds the products of a run."""
    return BFLOAT16_MATRICES if config.precision == "bfloat16" else config.matmul_precision


def work_by_hand(config: Config, trainer: Trainer, state: TrainState) -> dict[str, hand.Work]:
    """Return the work of one repetition of each part, and of an iteration."""
    spec = trainer.environment.spec
    layers = hand.layers_of(config, spec.obs_shape, spec.num_actions)
    elements, size = int(np.prod(spec.obs_shape)), np.dtype(spec.obs_dtype).itemsize
    obs_bytes = elements * size * config.frame_stack
    stored = -(-elements // 8) if spec.obs_dtype == np.bool_ else elements * size
    work = {
        "act": hand.act_work(config, layers, obs_bytes),
        "draw": hand.draw_work(config, stored, obs_bytes),
        "learn": hand.learn_work(config, layers, obs_bytes),
    }
    whole = hand.Work(0, 0)
    for name, count in hand.iteration_counts(config).items():
        whole = whole.plus(work[name].times(count))
    return {**work, "iteration": whole}


def parts_of(config: Config, trainer: Trainer, state: TrainState) -> dict[str, Part]:
    """Return acting, drawing and a gradient step, each to be repeated in a separate loop."""
    act = act_part(config, trainer, state)
    if config.algorithm == "pqn":
        return {"act": act, **_pqn_parts(config, trainer, state)}
    parts = learning_parts(config, trainer, make_replay(config), state)
    return {"act": act, "draw": parts["sample"], "learn": parts["learn"]}


def _pqn_parts(config: Config, trainer: Trainer, state: TrainState) -> dict[str, Part]:
    """Return the targets and orders of an iteration of PQN, and a gradient step on a minibatch."""
    learning = make_learning(config, trainer.agent, identity_collectives)
    rows = _example_rows(config, state)
    steps, size = config.gradient_steps_per_iteration, config.rows_per_iteration
    indices = jnp.arange(config.batch_per_device, dtype=jnp.int32)
    flat: PyTree = jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), rows)
    targets = jnp.zeros(size, jnp.float32)

    def draw(key: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        state, rows = fixed
        # Targets do not depend on the key; without this line, the compiler would hoist them.
        rows = rows._replace(reward=varied(carry[1][0, 0] < 0, rows.reward))
        return learning.prepare(split_named(key, learning.key_shapes), state, rows)[1]

    def learn(key: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        agent_state, info = carry
        chosen = varied(info.loss < 0, indices)
        obs, actions, target = jax.tree.map(lambda leaf: leaf[chosen], fixed)
        zeros = jnp.zeros_like(target)
        batch = Batch(obs_tm1=obs, a_tm1=actions, r_t=target, discount_t=zeros, obs_t=())
        weights = jnp.ones_like(target)
        return trainer.agent.learn(key, agent_state, batch, weights, hyper=state.hyper)

    data = (flat.obs, flat.action, targets)
    before = state.agent, LearnInfo(*[jnp.float32(0)] * 4)
    info = zeros_of(learn, state.key, data, before)[1]
    orders = (
        jax.random.split(state.key, steps),
        jnp.zeros((steps, indices.size), jnp.int32),
    )
    return {
        "draw": Part(1, (), (state, rows), orders, draw),
        "learn": Part(steps, (), data, (state.agent, info), learn),
    }


def _example_rows(config: Config, state: TrainState) -> Row:
    """Return rows [K, E] with the shapes of an iteration of PQN."""
    timestep = state.actor.timestep
    zeros = jnp.zeros(config.num_envs, jnp.int32)
    row = Row(
        action=zeros,
        **timestep._replace(obs=observed(state.actor.frames, timestep.obs))._asdict(),
        extras=zeros.astype(jnp.float32),
    )
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * config.rollout_length), row)
