"""Measure environments on the host, overlapped with learning: ``python -m benchmarks.host``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.report import describe, format_table, stamp
from benchmarks.timing import MEDIANS, RATIOS, Case, alternate, ratio, spread
from jaxdqn.cli.flags import parse, run_command

_CHUNK_ROWS = 8_192
_CADENCES: dict[str, dict[str, Any]] = {
    "K=4 B=32 M=1": {"rollout_length": 4, "batch_size": 32, "gradient_steps": 1},
    "K=32 B=64 M=16": {"rollout_length": 32, "batch_size": 64, "gradient_steps": 16},
}
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.host", description=__doc__)
    for name in ("rounds", "num_envs"):
        if getattr(flags, name) < 1:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least 1")
    rows = []
    for cadence, fields in _CADENCES.items():
        cases = {how: make_case(flags.env, flags.num_envs, how, fields) for how in _HOW}
        times = alternate(cases, rounds=flags.rounds, seconds=flags.seconds)
        rows += [
            (
                f"{cadence}, {how}",
                spread([1 / value for value in times[how]]),
                ratio(times["not learning"], times[how]),
            )
            for how in _HOW
        ]
    print(describe(stamp()))
    print(f"rows/s, {MEDIANS}; {RATIOS}")
    print(format_table(("case", "rows/s", "over not learning"), rows))


def make_case(env: str, num_envs: int, how: str, fields: dict[str, Any]) -> Case:
    """Return a chunk of training, or of acting only, in environments on the host."""
    import jax

    from jaxdqn import envs
    from jaxdqn.config.config import Config
    from jaxdqn.training.hyper import hyper_from
    from jaxdqn.training.vector_runner import VectorRunner, jit_vector_programs
    from jaxdqn.training.vector_trainer import make_vector_trainer

    rows = num_envs * fields["rollout_length"]
    config = Config(
        env=env, num_envs=num_envs, hidden_sizes=(64, 64), replay_capacity=256 * rows,
        warmup_rows=max(rows, 1_024 // rows * rows), overlap=how == "overlapped", **fields,
    )  # fmt: skip
    host = envs.configured_host_environment(config)
    if host is None:
        raise ValueError(f"env={env!r}: must be an environment on the host")
    trainer = make_vector_trainer(config, host)
    programs = jit_vector_programs(trainer)
    runner = VectorRunner(trainer, programs, lambda: host.make(num_envs))
    iterations = max(1, _CHUNK_ROWS // rows)
    states = [runner.init(jax.random.key(0), hyper_from(config))]
    act = runner.act_only if how == "not learning" else runner.chunk

    def run() -> Any:
        states[0], report = act(states[0], iterations)
        return report

    run()
    return Case(run, work=float(iterations * rows))


if __name__ == "__main__":
    sys.exit(main())
