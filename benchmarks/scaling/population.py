"""Time learners trained together and one by one, each setting in a process of its own.

How many threads XLA uses on CPU, and of how many devices it is made, is settled when a
process starts, and both change what one learner alone takes: hence processes. Each settles
them as ``jaxdqn run`` does. ``python -m benchmarks.scaling.population WORK`` is one;
between requests, a line each, it waits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.processes import Process
from benchmarks.timing import Case, Interval, ratio, spread
from jaxdqn.config.config import from_dict, to_dict
from jaxdqn.errors import RunFailed

if TYPE_CHECKING:
    from benchmarks.scaling.effort import Effort
    from jaxdqn.config.config import Config

_Setting = tuple[str, int]
"""How learners are trained, and on how many devices."""
_BASELINE: _Setting = ("one by one", 1)
_LONGER = 2
"""A process that has waited starts cold, so one measurement lasts so many times the effort's."""


class _Started:
    """A process that has compiled its program."""

    def __init__(
        self, stack: ExitStack, config: Config, effort: Effort, cpu_threads: int | None = None
    ) -> None:
        """Start it, and have ``stack`` end it; ``cpu_threads`` as ``jaxdqn run`` has them."""
        work = {
            "config": to_dict(config),
            "iterations": effort.iterations,
            "seconds": _LONGER * effort.seconds,
            "cpu_threads": cpu_threads,
        }
        self._process = Process(
            [sys.executable, "-m", "benchmarks.scaling.population", json.dumps(work)]
        )
        stack.callback(self._process.close)
        self._what = f"{config.learners} learners on {config.devices} devices"
        self.compile_seconds: float = self._checked(self._process.receive())["compile_seconds"]

    def rate(self) -> float:
        """Measure once; return gradient steps/s of all its learners."""
        answer = self._checked(self._process.measure())
        return answer["gradient_steps"] / answer["seconds"]

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "missing" in answer:
            raise RunFailed(f"the process of {self._what}: {answer['missing']}")
        return answer


def measure_population(alone: Config, effort: Effort) -> list[dict[str, Any]]:
    """Measure P learners in one program against P runs one after the other.

    Of runs one after the other a process has one at a time, so their gradient steps/s are
    one learner's; of two processes of P/2 runs each, those of two side by side.

    Args:
      alone: one learner on one device.
      effort: its ``devices`` say whether there are two to divide learners among.

    Raises:
      RunFailed: if a process ends.
    """
    rows = []
    with ExitStack() as stack:
        one = _Started(stack, alone, effort)
        singles: dict[_Setting, list[_Started]] = {_BASELINE: [one]}
        if _threads_matter():
            all_cores = _Started(stack, alone, effort, os.cpu_count())
            singles["one by one, all cores", 1] = [all_cores]
        pairs: dict[_Setting, list[_Started]] = {}
        for size in effort.learners:
            if size == 1:
                rows += _rows(size, singles, effort.rounds)
                continue
            if not pairs:
                pairs["two processes", 1] = [one, _Started(stack, alone, effort)]
            # Those of one size at a time: each holds its learners' replay.
            with ExitStack() as of_this_size:
                together = {
                    (how, devices): [_Started(of_this_size, config, effort)]
                    for (how, devices), config in _populations(alone, size, effort).items()
                }
                rows += _rows(size, {**singles, **together, **pairs}, effort.rounds)
    return rows


def _populations(alone: Config, size: int, effort: Effort) -> dict[_Setting, Config]:
    """Return the ways to train so many learners in one program."""
    hows: tuple[Literal["map", "vmap"], ...] = ("map", "vmap")
    return {
        (how, devices): dataclasses.replace(alone, num_seeds=size, population=how, devices=devices)
        for devices in (1, 2)
        if devices <= effort.devices[-1]
        for how in hows
    }


def _threads_matter() -> bool:
    import jax

    return jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1


def _rows(
    size: int, settings: Mapping[_Setting, Sequence[_Started]], rounds: int
) -> list[dict[str, Any]]:
    """Alternate settings, the order reversed every other round; return a row for each."""
    seconds: dict[_Setting, list[float]] = {setting: [] for setting in settings}
    for turn in range(rounds):
        for setting in list(settings)[:: 1 if turn % 2 == 0 else -1]:
            processes = settings[setting]
            with ThreadPoolExecutor(len(processes)) as pool:
                rates = list(pool.map(lambda process: process.rate(), processes))
            seconds[setting].append(1.0 / sum(rates))
    rows = []
    for (how, devices), processes in settings.items():
        took = seconds[how, devices]
        rates = [1.0 / each for each in took]
        rows.append(
            {
                "P": size,
                "devices": devices,
                "how": how,
                "compile s": processes[0].compile_seconds,
                "gradient steps/s": spread(rates),
                "of each learner": Interval(*(rate / size for rate in spread(rates))),
                "over one by one": ratio(seconds[_BASELINE], took),
            }
        )
    return rows


def main() -> None:
    """Compile the program, then run it for some seconds for every line read."""
    # Several processes may share a GPU, of which JAX would take most at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from benchmarks.timing import compile_cold
    from benchmarks.workloads import prepare_trainer
    from jaxdqn.cli.backend import use_cpu_threads
    from jaxdqn.parallel.build import make_mapped_trainer

    work = json.loads(sys.argv[1])
    config = from_dict(work["config"])
    use_cpu_threads(config, work["cpu_threads"])
    jax.config.update("jax_num_cpu_devices", config.devices)
    compile_cold()
    prepared = prepare_trainer(make_mapped_trainer(config), config, work["iterations"])
    jax.block_until_ready(prepared.case.run())
    print(json.dumps({"compile_seconds": prepared.compile_seconds}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(_measure(prepared.case, work["seconds"])), flush=True)


def _measure(case: Case, seconds: float) -> dict[str, float]:
    """Repeat a case for at least so long, each call awaited as a run awaits its chunk."""
    import jax

    start, steps, took = time.perf_counter(), 0.0, 0.0
    while steps == 0 or took < seconds:
        jax.block_until_ready(case.run())
        steps += case.work
        took = time.perf_counter() - start
    return {"seconds": took, "gradient_steps": steps}


if __name__ == "__main__":
    main()
