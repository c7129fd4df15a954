"""Drive jaxdqn on the workload of a peer in a separate process, as ``peers.py`` drives the peers.

``python -m benchmarks.versus.jaxdqn_driver GRADIENT_STEPS [GUARD] [WORK]`` writes the same lines
of JSON; WORK is ``matched``, ``pqn``, ``ray``,
``replay``, ``host:K,B,M`` or ``milabench:NETWORK:SCALE``. The process is separate because ``NPROC``
sets the number of XLA's CPU threads when a process starts.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdqn.config.config import Config


def _config(work: str, guard: Any) -> Config:
    """Return the configuration of a workload."""
    from benchmarks.configs import matched
    from jaxdqn.config.presets import preset

    epsilon: dict[str, Any] = {"epsilon_schedule": "constant", "epsilon_end": 0.05}
    if work.startswith("milabench:"):
        return _milabench(*work.split(":")[1:], guard=guard, **epsilon)
    if work == "pqn":
        return preset(
            "pqn",
            env="Breakout-MinAtar",
            protocol="gymnax",  # purejaxql uses this protocol
            total_rows=10_000_000,
            guard=guard,
            **epsilon,
        )
    return matched(
        replay_capacity=10_000,
        learning_rate=2.5e-4,
        loss="squared",
        target_period=50,
        guard=guard,
        **epsilon,
    )


def _milabench(network: str, scale: str, **fields: Any) -> Config:
    """Return milabench's workload, with the cadence of purejaxrl."""
    from benchmarks.configs import sized
    from benchmarks.versus.drivers.work import LEARNING_RATE, milabench

    work = milabench(int(scale))
    per_iteration = work.rows_per_gradient_step
    networks: dict[str, dict[str, Any]] = {
        "flat": {"network": "mlp", "hidden_sizes": (120, 84)},
        "convolution": {"network": "minatar"},
    }
    return sized(
        "SpaceInvaders-MinAtar",
        num_envs=work.num_envs,
        rollout_length=per_iteration // work.num_envs,
        batch_size=work.batch_size,
        # A replay holds complete iterations.
        replay_capacity=work.capacity // per_iteration * per_iteration,
        target_period=max(1, work.rows_per_target // per_iteration),
        learning_rate=LEARNING_RATE,
        loss="squared",
        **networks[network],
        **fields,
    )


def _replay_run(draws: int) -> Any:
    """Return a function that adds 10 rows and draws 128, ``draws`` times."""
    from typing import NamedTuple

    import jax
    import jax.numpy as jnp

    from benchmarks.replay.cases import ROWS, E, make_replays
    from benchmarks.versus.drivers.work import BATCH_SIZE, CAPACITY

    class Counts(NamedTuple):
        env_steps: int
        gradient_steps: int

    replays = make_replays(ROWS["float32 (4,)"], CAPACITY, BATCH_SIZE, prioritized=False)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        key, number, state = carry
        key, key_sample = jax.random.split(key)
        state = replays.add(state, number)
        batch, _ = replays.sample(key_sample, state)
        read = [jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(batch)]
        return (key, number + 1, state), sum(read, jnp.float32(0.0))

    def scan(carry: Any) -> tuple[Any, Any]:
        carry, read = jax.lax.scan(step, carry, None, length=draws)
        return carry, jnp.sum(read)

    carry = (jax.random.key(0), jnp.int32(0), replays.state)
    compiled = jax.jit(scan, donate_argnums=0).lower(carry).compile()

    def run() -> Any:
        nonlocal carry
        carry, read = jax.block_until_ready(compiled(carry))
        return read, Counts(draws * E, draws)

    return run


def _host_run(cadence: str, gradient_steps: int) -> Any:
    """Return a function that takes gradient steps in environments on the host."""
    from benchmarks.host import host_config, prepare_host
    from benchmarks.versus.drivers import work

    length, batch_size, updates = (int(number) for number in cadence.split(","))
    config = host_config(
        work.HOST_ENVS, length, batch_size, updates,
        hidden_sizes=tuple(work.HOST_HIDDEN_SIZES), replay_capacity=work.HOST_CAPACITY,
        warmup_rows=work.HOST_WARMUP, epsilon_schedule="constant", epsilon_end=work.EPSILON,
    )  # fmt: skip
    return prepare_host(config, gradient_steps // updates).learn


def _ray_run(gradient_steps: int) -> Any:
    """Return a function that takes gradient steps by Ape-X with two actors.

    The actors run until the process ends.
    """
    from jaxdqn.actor_learner.engine import RayEngine
    from jaxdqn.config.config import replace
    from jaxdqn.parallel.learners import learner_hypers, learner_keys
    from jaxdqn.run.program_cache import static_run

    engine = RayEngine(actors=2)
    config = replace(_config("matched", "stop"), replay="prioritized", warmup_rows=1_000)
    config = engine.configure(config, {})
    keys = learner_keys(config)
    programs = engine.programs(static_run(config, keys, {}), config, keys, lambda: None)
    state, _ = programs.init(keys.train, learner_hypers(config))
    chunk = programs.part_of_chunk(gradient_steps).result()

    def run() -> Any:
        nonlocal state
        state, (metrics, _) = chunk(state)
        return state, metrics

    return run


def main() -> None:
    """Compile, then run the workload once for every line on standard input."""
    import jax

    from benchmarks import workloads
    from benchmarks.timing import compile_cold
    from jaxdqn.cli.backend import use_cpu_dispatch
    from jaxdqn.config.config import Config

    compile_cold()
    guard = sys.argv[2] if len(sys.argv) > 2 else Config().guard
    work = sys.argv[3] if len(sys.argv) > 3 else "matched"
    if work == "ray":
        started = time.perf_counter()
        run = _ray_run(int(sys.argv[1]))
        compile_seconds = time.perf_counter() - started
    elif work == "replay":
        started = time.perf_counter()
        run = _replay_run(int(sys.argv[1]))
        compile_seconds = time.perf_counter() - started
    elif work.startswith("host:"):
        use_cpu_dispatch(Config(), "sync")  # as jaxdqn run does by default
        started = time.perf_counter()
        run = _host_run(work.removeprefix("host:"), int(sys.argv[1]))
        compile_seconds = time.perf_counter() - started
    else:
        config = _config(work, guard)
        iterations = int(sys.argv[1]) // config.gradient_steps_per_iteration
        prepared = workloads.prepare_learning(config, iterations)
        run, compile_seconds = prepared.case.run, prepared.compile_seconds
    jax.block_until_ready(run())
    ready = {"compile_seconds": compile_seconds, "device_kind": jax.devices()[0].device_kind}
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        _, metrics = jax.block_until_ready(run())
        seconds = time.perf_counter() - start
        counts = {name: int(getattr(metrics, name)) for name in ("env_steps", "gradient_steps")}
        print(json.dumps({"seconds": seconds, **counts}), flush=True)


if __name__ == "__main__":
    main()
