"""Measure environments on the device with random actions: ``python -m benchmarks.suites``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.report import describe, format_table, stamp
from benchmarks.timing import MEDIANS, RATIOS, Case, alternate, ratio, spread
from jaxdqn.cli.flags import parse, run_command

_HOW = ("with resets", "without resets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    rounds: int = 5
    """Measurements of each case, alternating."""
    seconds: float = 0.5
    """Approximate minimum duration of one measurement."""
    envs: tuple[str, ...] = (
        "navix:Navix-Empty-8x8-v0",
        "xminigrid:MiniGrid-Empty-8x8",
        "jumanji:Game2048-v1",
        "pgx:2048",
        "octax:brix",
        "craftax:Craftax-Classic-Symbolic-v1",
        "craftax:Craftax-Symbolic-v1",
    )
    """Environments."""
    num_envs: int = 64
    """Number of environments that step together."""
    steps: int = 64
    """Vector steps of one call."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.suites", description=__doc__)
    for option in ("rounds", "num_envs", "steps"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    rows = []
    for env in flags.envs:
        start = time.perf_counter()
        cases = {how: make_case(flags, env, how) for how in _HOW}
        seconds = time.perf_counter() - start
        times = alternate(cases, rounds=flags.rounds, seconds=flags.seconds)
        rates = [spread([1 / value for value in times[how]]) for how in _HOW]
        rows.append((env, f"{seconds:.1f}", *rates, ratio(times[_HOW[0]], times[_HOW[1]])))
    print(describe(stamp()))
    print(f"rows/s of {flags.num_envs} environments, {MEDIANS}; {RATIOS}")
    headers = ("environment", "made and compiled, s", *_HOW, "without over with")
    print(format_table(headers, rows))


def make_case(flags: Flags, name: str, how: str) -> Case:
    """Return a case: random actions in an environment, with or without resets.

    With resets, a reset is computed at every step (autoreset).

    Without resets, steps continue after the end of an episode at the same cost. The rate is then an
    upper bound for ``--reset pooled``.
    """
    import jax
    import jax.numpy as jnp

    from jaxdqn import envs
    from jaxdqn.envs.autoreset import advance_of

    environment = envs.make(name)
    step = environment.step if how == "with resets" else advance_of(environment)
    assert step is not None

    def body(state: Any, key: Any) -> tuple[Any, Any]:
        shape, actions = (flags.num_envs,), environment.spec.num_actions
        chosen = jax.random.randint(key, shape, 0, actions, dtype=jnp.int32)
        state, timestep = jax.vmap(step)(jax.random.split(key, flags.num_envs), state, chosen)
        # The result depends on the observation, so that the observation is computed.
        return state, (timestep.reward, jnp.sum(timestep.obs.astype(jnp.float32)))

    @jax.jit
    def scan(state: Any, key: Any) -> tuple[Any, Any]:
        return jax.lax.scan(body, state, jax.random.split(key, flags.steps))

    keys = jax.random.split(jax.random.key(0), flags.num_envs)
    states = [jax.jit(jax.vmap(environment.reset))(keys)[0]]

    def run() -> Any:
        states[0], result = scan(states[0], jax.random.key(1))
        return result

    jax.block_until_ready(run())
    return Case(run, work=float(flags.steps * flags.num_envs))


if __name__ == "__main__":
    sys.exit(main())
