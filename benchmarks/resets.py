"""Measure expensive resets, at every step and pooled: ``python -m benchmarks.resets``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, Case, alternate, ratio, spread
from jaxdqn.cli.flags import parse, run_command

Reset = Literal["every-step", "pooled"]

_CHUNK_ROWS = 4_096
_RESETS: tuple[Reset, ...] = ("every-step", "pooled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    rounds: int = 7
    """Measurements of each case, alternating."""
    seconds: float = 0.5
    """Approximate minimum duration of one measurement."""
    products: int = 100
    """Matrix products [32, 32] that the expensive reset computes."""
    rollout_length: int = 8
    """K: vector steps in an iteration."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/resets.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.resets", description=__doc__)
    for name in ("rounds", "products", "rollout_length"):
        if getattr(flags, name) < 1:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least 1")
    check_writable(flags.json)
    costs = {"cheap": 0, "expensive": flags.products}
    cases = {
        f"{cost} reset, {how}": make_case(products, how, flags.rollout_length)
        for cost, products in costs.items()
        for how in _RESETS
    }
    times = alternate(cases, rounds=flags.rounds, seconds=flags.seconds)
    report: dict[str, Any] = {"stamp": stamp(), "flags": dataclasses.asdict(flags)}
    report["cases"] = {
        name: {
            "env_steps_per_second": spread([1 / value for value in times[name]]),
            "over_every_step": ratio(times[base], times[name]),
        }
        for name in times
        for base in [f"{name.partition(',')[0]}, every-step"]
    }
    print(describe(report["stamp"]))
    print(f"environment steps/s, {MEDIANS}; {RATIOS}")
    rows = [(name, *case.values()) for name, case in report["cases"].items()]
    print(format_table(("case", "environment steps/s", "over every-step"), rows))
    for cost, products in costs.items():
        print(f"auto, {cost} reset: {_choice(products)}")
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def _choice(products: int) -> str:
    """Return what ``reset='auto'`` chooses, and why."""
    from jaxdqn.config.config import Config
    from jaxdqn.training.resets import choose_reset

    choice = choose_reset(Config(), corridor(products))
    return f"{choice.reset}, since {choice.reason}"


def make_case(products: int, how: Reset, rollout_length: int) -> Case:
    """Return a case: training on a corridor whose reset computes ``products`` matrix products."""
    import jax

    from jaxdqn.config.config import Config
    from jaxdqn.training.trainer import make_trainer

    rows = 32 * rollout_length
    config = Config(
        num_envs=32, rollout_length=rollout_length, loss="squared", replay_capacity=32_768,
        warmup_rows=max(1_024, rows), total_rows=200_000, reset=how,
    )  # fmt: skip
    trainer = make_trainer(config, environment=corridor(products))
    chunk = jax.jit(trainer.chunk(max(1, _CHUNK_ROWS // rows)), donate_argnums=0)
    state = jax.jit(trainer.init)(jax.random.key(0))
    state, metrics = chunk(state)
    states = [state]

    def run() -> Any:
        states[0], metrics = chunk(states[0])
        return metrics

    return Case(run, work=float(metrics.env_steps))


def corridor(products: int) -> Any:
    """Return a corridor of eleven cells; its reset computes ``products`` matrix products."""
    import jax
    import jax.numpy as jnp

    from jaxdqn.envs import make_environment

    def show(cell: Any) -> Any:
        return jax.nn.one_hot(cell, 11)

    def reset(key: Any) -> tuple[Any, Any]:
        cell = jax.random.randint(key, (), 2, 9)
        if products:
            matrix = jax.random.normal(key, (32, 32))
            multiply: Callable[[Any, Any], Any] = lambda _, found: jnp.tanh(found @ matrix)  # noqa: E731
            found = jax.lax.fori_loop(0, products, multiply, matrix)
            cell += (found[0, 0] > 2).astype(jnp.int32)  # never, but the compiler cannot know
        return cell, show(cell)

    def step(key: Any, cell: Any, action: Any) -> tuple[Any, ...]:
        cell = jnp.clip(cell + 2 * action - 1, 0, 10)
        return cell, show(cell), jnp.where(cell == 10, 1.0, -0.01), cell == 10

    return make_environment(reset, step, name="corridor", num_actions=2, max_episode_steps=50)


if __name__ == "__main__":
    sys.exit(main())
