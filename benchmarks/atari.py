"""Sections ``nature``, ``atari`` and ``overlap`` of ``benchmarks.host``: gradient steps, acting and
training in Pong."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.host import prepare_host
from benchmarks.processes import Process
from benchmarks.timing import Case, alternate, alternating, ratio, spread, verdict
from jaxdqn.config.config import replace

ACTIONS = 18
FRAME = (84, 84)
BATCH_SIZE = 32
GRADIENT_STEPS = 4
"""Number of gradient steps in one call of the compiled learner."""
NATURE_BAR = 1.6
"""Maximum time of a gradient step, relative to PyTorch's forward and backward pass."""
ACTING_BAR = 1.2
"""Minimum rate of acting, relative to 1 / (emulator + forward)."""
OVERLAP_BAR = 1.05
"""Minimum rate of overlapped training, relative to serial training."""


def nature_section(rounds: int, python: str | None, threads: int | None) -> dict[str, Any]:
    """Measure a gradient step of the Nature network, relative to a pass of PyTorch.

    A gradient step draws a batch, applies the target network, and computes the loss, its gradient,
    Adam's update and the guard. The pass of PyTorch is forward and backward.

    Args:
      rounds: measurements of each side, alternating.
      python: interpreter that has PyTorch; None measures jaxdqn alone.
      threads: number of threads of PyTorch; None for its default.

    Returns:
      Seconds of each side and ``ratio``; or ``missing``, the reason why there is no ratio.
    """
    case = nature_case()
    if python is None:
        times = alternate({"jaxdqn": case}, rounds=rounds)["jaxdqn"]
        return {"jaxdqn_seconds": spread(times), "missing": "no torch_python"}
    if shutil.which(python) is None:
        raise ValueError(f"torch_python={python!r}: must be a Python interpreter")
    driver = Path(__file__).with_name("torch_nature.py")
    sizes = map(str, (BATCH_SIZE, GRADIENT_STEPS, threads or 0))
    torch = Process([python, "-P", str(driver), *sizes], threads)
    try:
        ready = torch.receive()
        if "missing" in ready:
            return {"missing": ready["missing"]}
        return compare_nature(case, torch, rounds)
    finally:
        torch.close()


def compare_nature(case: Case, torch: Any, rounds: int) -> dict[str, Any]:
    """Measure both sides alternately; ``torch.measure()`` returns ``seconds`` and
    ``gradient_steps``."""
    times: dict[str, list[float]] = {"jaxdqn": [], "torch": []}
    torch.measure()  # to warm up
    for side in alternating(times, rounds):
        if side == "jaxdqn":
            times[side] += alternate({side: case}, rounds=1)[side]
            continue
        answer = torch.measure()
        if "missing" in answer:
            return {"missing": answer["missing"]}
        times[side].append(answer["seconds"] / answer["gradient_steps"])
    measured = ratio(times["jaxdqn"], times["torch"])
    return {
        "jaxdqn_seconds": spread(times["jaxdqn"]),
        "torch_seconds": spread(times["torch"]),
        "ratio": measured,
        "bar": verdict(measured, NATURE_BAR, higher_is_better=False),
    }


def nature_case(batch_size: int = BATCH_SIZE, rows: int = 512) -> Case:
    """Return compiled gradient steps of the ``atari`` preset on random frames.

    Args:
      batch_size: B
      rows: rows in the replay.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxdqn.communication.collectives import identity_collectives
    from jaxdqn.config.presets import preset
    from jaxdqn.envs.vector.base import time_step
    from jaxdqn.training.algorithms import CustomParts, build_agent
    from jaxdqn.training.dqn import make_dqn_learning
    from jaxdqn.training.hyper import hyper_from
    from jaxdqn.training.keys import split_named, start_keys
    from jaxdqn.training.learner import make_learner
    from jaxdqn.types import EnvSpec, Row

    envs = 4
    config = preset(
        "atari", num_envs=envs, rollout_length=1, replay_ratio=None, gradient_steps=GRADIENT_STEPS,
        batch_size=batch_size, replay_capacity=rows, warmup_rows=rows // 2, total_rows=10 * rows,
    )  # fmt: skip
    spec = EnvSpec("random frames", FRAME, np.dtype(np.uint8), ACTIONS, None)
    agent = build_agent(config, spec, identity_collectives, None, CustomParts())
    learning = make_dqn_learning(config, agent, identity_collectives)
    learner = make_learner(config, spec, agent, learning, identity_collectives)
    rng, no = np.random.default_rng(0), np.zeros(envs, bool)
    frames = rng.integers(0, 256, (rows // envs, 1, envs, *FRAME), np.uint8)
    timestep = time_step(frames[0, 0], np.zeros(envs), no, no, ~no, spec.obs_dtype)
    keys = start_keys(jax.random.key(0), 0)
    actor = learner.start((), timestep)
    state = jax.jit(learner.init)(keys.agent, keys.run, actor, hyper_from(config))
    flags = jnp.zeros(frames.shape[:3], jnp.bool_)
    actions = jnp.asarray(rng.integers(0, ACTIONS, frames.shape[:3]), jnp.int32)
    reward = jnp.asarray(rng.choice([-1, 0, 1], frames.shape[:3]), jnp.float32)
    played = Row(jnp.asarray(frames), flags, actions, reward, flags, flags)

    def fill(replay: Any) -> Any:
        return jax.lax.scan(lambda replay, row: (learning.remember(replay, row), None), replay,
                            played)[0]  # fmt: skip

    states = [state._replace(replay=jax.jit(fill)(state.replay))]

    # Learning from a replay reads neither the rows of the iteration nor its metrics.
    no_rows: Any = ()

    def learn(state: Any) -> Any:
        named = split_named(state.key, learner.key_shapes)
        after, metrics = learner.learn(named.learn, state, no_rows, _no_metrics())
        return after._replace(key=named.next), metrics.loss

    step = jax.jit(learn, donate_argnums=0)

    def run() -> Any:
        states[0], loss = step(states[0])
        return loss

    run()
    return Case(run, work=float(GRADIENT_STEPS))


def _no_metrics() -> Any:
    from jaxdqn.actor_learner.group_learner import no_metrics

    return no_metrics()


def acting_section(
    rounds: int, seconds: float, num_envs: int = 16, env_args: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure acting in ``ale:pong`` with the Nature network, relative to its parts.

    Args:
      rounds: measurements of each case, alternating.
      seconds: approximate minimum duration of a measurement.
      num_envs: E
      env_args: arguments of the environment.

    Returns:
      Environment steps/s of the emulators alone, of greedy forward passes including the transfer of
      the actions to the host, and of acting; and ``ratio``, the rate of acting relative to
      1 / (emulator + forward).
    """
    cases = acting_cases(num_envs, env_args)
    times = alternate(cases, rounds=rounds, seconds=seconds)
    both = [a + b for a, b in zip(times["emulator"], times["forward"], strict=True)]
    measured = ratio(both, times["acting"])
    return {
        **{name: spread([1 / value for value in times[name]]) for name in cases},
        "ratio": measured,
        "bar": verdict(measured, ACTING_BAR, higher_is_better=True),
    }


def acting_cases(
    num_envs: int, env_args: Sequence[str] = (), vector_steps: int = 16
) -> dict[str, Case]:
    """Return the cases of ``acting_section``; work is counted in environment steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxdqn import envs
    from jaxdqn.config.presets import preset
    from jaxdqn.networks import make_network

    rows = num_envs * vector_steps
    config = preset(
        "atari", env_args=tuple(env_args), num_envs=num_envs, rollout_length=vector_steps,
        replay_ratio=None, gradient_steps=1, batch_size=1, replay_capacity=8 * rows,
        warmup_rows=rows, total_rows=100 * rows,
    )  # fmt: skip
    host = envs.configured_host_environment(config)
    assert host is not None
    games, rng = host.make(num_envs), np.random.default_rng(0)
    games.reset(0)
    actions = rng.integers(0, host.spec.num_actions, (vector_steps, num_envs), np.int32)

    def emulator() -> Any:
        for chosen in actions:
            timestep = games.step(chosen)
        return timestep.reward

    network = make_network(config, host.spec)
    stacked = (num_envs, *host.spec.obs_shape, config.frame_stack)
    frames = rng.integers(0, 256, (vector_steps, *stacked), np.uint8)
    params = network.init(jax.random.key(0), jnp.asarray(frames[0]))
    first = jnp.zeros(num_envs, jnp.bool_)

    @jax.jit
    def greedy(obs: Any) -> Any:
        return jnp.argmax(network.apply(params, None, (), obs, first)[0].q_values, axis=1)

    def forward() -> Any:
        for obs in frames:
            chosen = np.asarray(greedy(obs))
        return chosen

    prepared = prepare_host(config, 1, host)
    work = {"emulator": emulator, "forward": forward, "acting": prepared.act}
    return {name: Case(run, work=float(rows)) for name, run in work.items()}


def overlap_section(rounds: int, seconds: float) -> dict[str, Any]:
    """Measure training in ``ale:pong`` with and without overlap of acting and learning.

    Args:
      rounds: measurements of each case, alternating.
      seconds: approximate minimum duration of a measurement.

    Returns:
      Rows/s without learning, serial and overlapped; and ``ratio``, the rate of overlapped training
      relative to serial training.
    """
    cases = overlap_cases()
    times = alternate(cases, rounds=rounds, seconds=seconds)
    measured = ratio(times["serial"], times["overlapped"])
    return {
        **{name: spread([1 / value for value in times[name]]) for name in cases},
        "ratio": measured,
        "bar": verdict(measured, OVERLAP_BAR, higher_is_better=True),
    }


def overlap_cases(iterations: int = 16, **fields: Any) -> dict[str, Case]:
    """Return the cases of ``overlap_section``; work is counted in rows.

    Args:
      iterations: number of iterations in one call.
      fields: fields of the configuration; by default those of the preset ``atari``, with 16 games
        and a small replay.
    """
    from jaxdqn.config.presets import preset

    config = preset("atari", **{"num_envs": 16, "replay_capacity": 4_096, "warmup_rows": 1_024,
                                **fields})  # fmt: skip
    serial = prepare_host(replace(config, overlap=False), iterations)
    overlapped = prepare_host(replace(config, overlap=True), iterations)
    runs = {"not learning": serial.act, "serial": serial.learn, "overlapped": overlapped.learn}
    for run in runs.values():
        run()
    work = float(iterations * config.rows_per_iteration)
    return {name: Case(run, work) for name, run in runs.items()}
