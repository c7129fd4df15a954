"""Measure environments on the host, overlapped with learning: ``python -m benchmarks.host``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.report import describe, format_table, stamp
from benchmarks.timing import MEDIANS, RATIOS, Case, alternate, ratio, spread
from jaxdqn.cli.flags import parse, run_command

_CHUNK_ROWS = 8_192
_HOW = ("not learning", "serial", "overlapped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    rounds: int = 7
    """Measurements of each case, alternating."""
    seconds: float = 1.0
    """Approximate minimum duration of one measurement."""
    env: str = "gymnasium:CartPole-v1"
    """Environment on the host."""
    num_envs: int = 8
    """Number of environments."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    step_milliseconds: float = 0.0
    """Time by which every vector step of the environments is prolonged, as by a slow simulator."""
    cadences: tuple[str, ...] = ("4,32,1", "32,64,16")
    """Vector steps (K), batch size (B) and gradient steps (M) of an iteration, each as K,B,M."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.host", description=__doc__)
    for option in ("rounds", "num_envs"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    rows = []
    names = {cadence: name_of(cadence) for cadence in flags.cadences}
    for cadence, name in names.items():
        cases = {how: make_case(flags, how, cadence) for how in _HOW}
        times = alternate(cases, rounds=flags.rounds, seconds=flags.seconds)
        rows += [
            (
                f"{name}, {how}",
                spread([1 / value for value in times[how]]),
                ratio(times["not learning"], times[how]),
            )
            for how in _HOW
        ]
    print(describe(stamp()))
    print(f"rows/s, {MEDIANS}; {RATIOS}")
    print(format_table(("case", "rows/s", "over not learning"), rows))


def name_of(cadence: str) -> str:
    """Return a cadence K,B,M with the names of its numbers.

    Raises:
        ValueError: if it is not three whole numbers of at least 1.
    """
    numbers = cadence.split(",")
    if len(numbers) != 3 or not all(number.isdigit() and int(number) for number in numbers):
        raise ValueError(f"cadences={cadence!r}: must be K,B,M, as in 4,32,1")
    return " ".join(f"{name}={number}" for name, number in zip("KBM", numbers, strict=True))


class Prolonged:
    """Environments on the host whose vector steps take longer.

    Args:
        envs: the environments.
        seconds: added to each vector step.
    """

    def __init__(self, envs: Any, seconds: float) -> None:
        self._envs, self._seconds = envs, seconds
        self.reset, self.close = envs.reset, envs.close

    def step(self, actions: Any) -> Any:
        """Step the environments."""
        time.sleep(self._seconds)
        return self._envs.step(actions)


def make_case(flags: Flags, how: str, cadence: str) -> Case:
    """Return a chunk of training, or of acting only, in environments on the host."""
    import jax

    from jaxdqn import envs
    from jaxdqn.config.config import Config
    from jaxdqn.training.hyper import hyper_from
    from jaxdqn.training.vector_functions import block_length
    from jaxdqn.training.vector_programs import jit_vector_programs
    from jaxdqn.training.vector_runner import VectorRunner
    from jaxdqn.training.vector_trainer import make_vector_trainer

    length, batch_size, gradient_steps = map(int, cadence.split(","))
    rows = flags.num_envs * length
    config = Config(
        env=flags.env, num_envs=flags.num_envs, hidden_sizes=flags.hidden_sizes,
        rollout_length=length, batch_size=batch_size, gradient_steps=gradient_steps,
        replay_capacity=256 * rows, warmup_rows=max(rows, 1_024 // rows * rows),
        overlap=how == "overlapped",
    )  # fmt: skip
    host = envs.configured_host_environment(config)
    if host is None:
        raise ValueError(f"env={flags.env!r}: must be an environment on the host")
    make, seconds = host.make, flags.step_milliseconds / 1_000
    if seconds:
        host = host._replace(make=lambda num_envs: Prolonged(make(num_envs), seconds))
    trainer = make_vector_trainer(config, host)
    runner = VectorRunner(trainer, jit_vector_programs(trainer))
    iterations = max(1, _CHUNK_ROWS // rows)
    if seconds:
        iterations = max(1, min(iterations, round(1 / (length * seconds))))  # about a second
    states = [runner.init(jax.random.key(0), hyper_from(config))]

    def act(state: Any) -> tuple[Any, Any]:
        shape = (-(-iterations // block_length(config)), block_length(config) * length)
        state = runner.act(state, jax.random.split(jax.random.key(1), shape), iterations)
        return state, state.counters

    def run() -> Any:
        if how == "not learning":
            states[0], report = act(states[0])
        else:
            states[0], report = runner.chunk(states[0], iterations)
        return report

    run()
    return Case(run, work=float(iterations * rows))


if __name__ == "__main__":
    sys.exit(main())
