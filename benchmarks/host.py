"""Measure environments on the host, overlapped with learning: ``python -m benchmarks.host``."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, Case, alternate, ratio, spread
from jaxdqn.cli.backend import use_cpu_dispatch
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.config.config import Config

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
    """Milliseconds added to every vector step, to imitate a slow simulator."""
    cadences: tuple[str, ...] = ("4,32,1", "32,64,16")
    """Vector steps (K), batch size (B) and gradient steps (M) of an iteration, each as K,B,M."""
    sections: tuple[Literal["cadences", "nature", "atari", "overlap", "dispatch"], ...] = (
        "cadences",
    )
    """cadences: rows/s without learning, serial and overlapped. nature: time of a gradient step of
    the Nature network, relative to PyTorch's forward and backward pass. atari: rate of acting in
    ale:pong with 16 environments, relative to its emulator and forward pass. overlap: rows/s of
    training in ale:pong with the preset atari and a small replay, overlapped relative to serial.
    dispatch: rows/s with synchronous dispatch on the CPU, relative to asynchronous dispatch (the
    default of JAX)."""
    torch_python: str | None = None
    """Interpreter that has PyTorch, for the section nature."""
    torch_threads: int | None = None
    """Threads of PyTorch; by default as many as PyTorch chooses."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/host.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.host", description=__doc__)
    for option in ("rounds", "num_envs"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    if flags.torch_python is not None and shutil.which(flags.torch_python) is None:
        raise ValueError(f"torch_python={flags.torch_python!r}: must be a Python interpreter")
    if flags.torch_threads is not None and flags.torch_threads < 1:
        raise ValueError(f"torch_threads={flags.torch_threads}: must be at least 1")
    names = {cadence: name_of(cadence) for cadence in flags.cadences}
    check_writable(flags.json)
    use_cpu_dispatch(Config(), "sync")  # as jaxdqn run does by default with such environments
    report: dict[str, Any] = {"stamp": stamp(), "flags": dataclasses.asdict(flags)}
    print(describe(report["stamp"]))
    print(f"{MEDIANS}; {RATIOS}")
    for section in flags.sections:
        report[section] = _SECTIONS[section](flags, names)
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def _cadences(flags: Flags, names: Mapping[str, str]) -> dict[str, Any]:
    """Measure rows/s without learning, serial and overlapped; print the table."""
    rows = []
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
    print(format_table(("case", "rows/s", "over not learning"), rows))
    return {case: {"rows_per_second": rate, "over_not_learning": over} for case, rate, over in rows}


def _nature(flags: Flags, names: Mapping[str, str]) -> dict[str, Any]:
    """Measure a gradient step of the Nature network; print the table."""
    from benchmarks.atari import BATCH_SIZE, nature_section

    result = nature_section(flags.rounds, flags.torch_python, flags.torch_threads)
    headers = ("Nature network", "gradient step, s", "PyTorch, s", "ratio", "bar")
    keys = ("jaxdqn_seconds", "torch_seconds", "ratio", "bar")
    print(format_table(headers, [(f"batch {BATCH_SIZE}", *(result.get(key, "") for key in keys))]))
    if "missing" in result:
        print(f"PyTorch: not measured: {result['missing']}")
    return result


def _atari(flags: Flags, names: Mapping[str, str]) -> dict[str, Any]:
    """Measure acting in ``ale:pong``; print the table."""
    from benchmarks.atari import acting_section

    result = acting_section(flags.rounds, flags.seconds)
    keys = ("emulator", "forward", "acting", "ratio", "bar")
    print(format_table(("environment steps/s", *keys), [("ale:pong", *map(result.get, keys))]))
    return result


def _overlap(flags: Flags, names: Mapping[str, str]) -> dict[str, Any]:
    """Measure training in ``ale:pong`` with and without overlap; print the table."""
    from benchmarks.atari import overlap_section

    result = overlap_section(flags.rounds, flags.seconds)
    headers = ("rows/s", *_HOW, "overlapped over serial", "bar")
    keys = (*_HOW, "ratio", "bar")
    print(format_table(headers, [("ale:pong", *map(result.get, keys))]))
    return result


def _dispatch(flags: Flags, names: Mapping[str, str]) -> dict[str, Any]:
    """Measure synchronous and asynchronous dispatch on the CPU; print the table."""
    from benchmarks.dispatch import MODES, dispatch_section

    report = {name: dispatch_section(flags, cadence) for cadence, name in names.items()}
    keys = (*MODES, "sync_over_async")
    rows = [
        (f"{name}, {work}", *(measured[key] for key in keys))
        for name, result in report.items()
        for work, measured in result.items()
    ]
    print(format_table(("rows/s", *keys), rows))
    return report


_SECTIONS: dict[str, Callable[[Flags, Mapping[str, str]], dict[str, Any]]] = {
    "cadences": _cadences,
    "nature": _nature,
    "atari": _atari,
    "overlap": _overlap,
    "dispatch": _dispatch,
}


def name_of(cadence: str) -> str:
    """Return a cadence K,B,M with the names of its numbers.

    Raises:
        ValueError: if ``cadence`` is not three whole numbers of at least 1.
    """
    numbers = cadence.split(",")
    if len(numbers) != 3 or not all(number.isdigit() and int(number) for number in numbers):
        raise ValueError(f"cadences={cadence!r}: must be K,B,M, as in 4,32,1")
    return " ".join(f"{name}={number}" for name, number in zip("KBM", numbers, strict=True))


class Prolonged:
    """Environments on the host with slowed vector steps.

    Args:
        envs: the environments.
        seconds: seconds added to each vector step.
    """

    def __init__(self, envs: Any, seconds: float) -> None:
        self._envs, self._seconds = envs, seconds
        self.reset, self.close = envs.reset, envs.close

    def step(self, actions: Any) -> Any:
        """Step the environments."""
        time.sleep(self._seconds)
        return self._envs.step(actions)


class Prepared(NamedTuple):
    """Compiled work in environments on the host; each call continues the run."""

    learn: Callable[[], Any]
    """Run iterations; return the counters, and the metrics."""
    act: Callable[[], Any]
    """Act and store the same number of rows without learning; return the counters."""


def host_config(
    num_envs: int, length: int, batch_size: int, gradient_steps: int, **fields: Any
) -> Any:
    """Return a configuration of E environments on the host, by default CartPole, with K, B, M."""
    from jaxdqn.config.config import Config

    rows = num_envs * length
    sizes = {"replay_capacity": 256 * rows, "warmup_rows": max(rows, 1_024 // rows * rows)}
    return Config(**{
        "env": "gymnasium:CartPole-v1", "num_envs": num_envs, "rollout_length": length,
        "batch_size": batch_size, "gradient_steps": gradient_steps, **sizes, **fields,
    })  # fmt: skip


def prepare_host(config: Any, iterations: int, host: Any = None) -> Prepared:
    """Start a run of an environment on the host and compile its programs.

    Args:
        config: configuration of the run.
        iterations: number of iterations in one call.
        host: the environment; None selects that of ``config``.

    Raises:
        ValueError: if the environment of ``config`` is not on the host.
    """
    import jax

    from jaxdqn import envs
    from jaxdqn.training.hyper import hyper_from
    from jaxdqn.training.vector_functions import block_length
    from jaxdqn.training.vector_programs import jit_vector_programs
    from jaxdqn.training.vector_runner import VectorRunner
    from jaxdqn.training.vector_trainer import make_vector_trainer

    host = envs.configured_host_environment(config) if host is None else host
    if host is None:
        raise ValueError(f"env={config.env!r}: must be an environment on the host")
    trainer = make_vector_trainer(config, host)
    runner = VectorRunner(trainer, jit_vector_programs(trainer))
    states = [runner.init(jax.random.key(0), hyper_from(config))]
    size = block_length(config)
    blocks = jax.random.split(
        jax.random.key(1), (-(-iterations // size), size * config.rollout_length)
    )

    def learn() -> Any:
        states[0], (metrics, _) = runner.chunk(states[0], iterations)
        return states[0].counters, metrics

    def act() -> Any:
        states[0] = runner.act(states[0], blocks, iterations)
        return states[0].counters

    return Prepared(learn, act)


def make_case(flags: Flags, how: str, cadence: str) -> Case:
    """Return a case: a chunk of training, or of acting only, in environments on the host."""
    from jaxdqn import envs

    length, batch_size, gradient_steps = map(int, cadence.split(","))
    rows = flags.num_envs * length
    config = host_config(
        flags.num_envs, length, batch_size, gradient_steps, env=flags.env,
        hidden_sizes=flags.hidden_sizes, overlap=how == "overlapped",
    )  # fmt: skip
    host = envs.configured_host_environment(config)
    iterations, seconds = max(1, _CHUNK_ROWS // rows), flags.step_milliseconds / 1_000
    if host is not None and seconds:
        make = host.make
        host = host._replace(make=lambda num_envs: Prolonged(make(num_envs), seconds))
        iterations = max(1, min(iterations, round(1 / (length * seconds))))  # about a second
    prepared = prepare_host(config, iterations, host)
    run = prepared.act if how == "not learning" else prepared.learn
    run()
    return Case(run, work=float(iterations * rows))


if __name__ == "__main__":
    sys.exit(main())
