"""Time learners trained together and one by one, each setting in a separate process.

The number of XLA's CPU threads and of virtual devices is fixed when a process starts, and both
change the speed of a single learner. Each process chooses them as ``jaxdqn run`` does.
``python -m benchmarks.scaling.population WORK`` is one such process: it compiles, then trains once
for every line on its standard input.
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
from benchmarks.timing import Case, Interval, alternating, ratio, spread
from jaxdqn.config.config import from_dict, to_dict
from jaxdqn.errors import RunFailed

if TYPE_CHECKING:
    from benchmarks.scaling.plan import Plan
    from benchmarks.timing import Effort
    from jaxdqn.config.config import Config

_Setting = tuple[str, int]
"""Mapping of the learners, and number of devices."""
_BASELINE: _Setting = ("one by one", 1)
_DURATION_FACTOR = 2
"""Factor on the duration of a measurement, because a process that waited has cold caches."""


class _LearnerProcess:
    """Process that trains learners and has compiled its program."""

    def __init__(
        self, stack: ExitStack, config: Config, effort: Effort, cpu_threads: int | None = None
    ) -> None:
        """Start the process, which ``stack`` closes.

        Without ``cpu_threads`` the process chooses its XLA threads as ``jaxdqn run`` does.
        """
        work = {
            "config": to_dict(config),
            "iterations": effort.iterations,
            "seconds": _DURATION_FACTOR * effort.seconds,
            "cpu_threads": cpu_threads,
        }
        self._process = Process(
            [sys.executable, "-m", "benchmarks.scaling.population", json.dumps(work)]
        )
        stack.callback(self._process.close)
        self._name = f"{config.learners} learners on {config.devices} devices"
        self.compile_seconds: float = self._checked(self._process.receive())["compile_seconds"]

    def rate(self) -> float:
        """Measure once; return the gradient steps/s of all learners."""
        answer = self._checked(self._process.measure())
        return answer["gradient_steps"] / answer["seconds"]

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "missing" in answer:
            raise RunFailed(f"{self._name}: {answer['missing']}")
        return answer


def measure_population(single: Config, plan: Plan) -> list[dict[str, Any]]:
    """Measure P learners in one program, relative to P runs one after another.

    A process that executes runs one after another trains one learner at a time, so its gradient
    steps/s over P runs equal those of one learner. Likewise, two processes with P/2 runs each have
    the speed of two concurrent learners.

    Args:
        single: configuration of one learner on one device.
        plan: amount of measurement, population sizes, and available numbers of devices.

    Raises:
        RunFailed: if a process exits.
    """
    effort, rows = plan.effort, []
    with ExitStack() as stack:
        one = _LearnerProcess(stack, single, effort)
        singles: dict[_Setting, list[_LearnerProcess]] = {_BASELINE: [one]}
        if _threads_matter():
            all_cores = _LearnerProcess(stack, single, effort, os.cpu_count())
            singles["one by one, all cores", 1] = [all_cores]
        pairs: dict[_Setting, list[_LearnerProcess]] = {}
        for size in plan.learners:
            if size == 1:
                rows += _rows(size, singles, effort.rounds)
                continue
            if not pairs:
                pairs["two processes", 1] = [one, _LearnerProcess(stack, single, effort)]
            # One size at a time, because each process holds the replays of all its learners.
            with ExitStack() as size_stack:
                together = {
                    (how, devices): [_LearnerProcess(size_stack, config, effort)]
                    for (how, devices), config in _populations(single, size, plan).items()
                }
                rows += _rows(size, {**singles, **together, **pairs}, effort.rounds)
    return rows


def _populations(single: Config, size: int, plan: Plan) -> dict[_Setting, Config]:
    """Return the configurations that train ``size`` learners in one program."""
    hows: tuple[Literal["map", "vmap"], ...] = ("map", "vmap")
    return {
        (how, devices): dataclasses.replace(single, num_seeds=size, population=how, devices=devices)
        for devices in (1, 2)
        if devices <= plan.devices[-1]
        for how in hows
    }


def _threads_matter() -> bool:
    import jax

    return jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1


def _rows(
    size: int, settings: Mapping[_Setting, Sequence[_LearnerProcess]], rounds: int
) -> list[dict[str, Any]]:
    """Measure every setting once per round; return a row for each setting."""
    seconds: dict[_Setting, list[float]] = {setting: [] for setting in settings}
    for setting in alternating(settings, rounds):
        processes = settings[setting]
        with ThreadPoolExecutor(len(processes)) as pool:
            rates = list(pool.map(lambda process: process.rate(), processes))
        seconds[setting].append(1.0 / sum(rates))
    rows = []
    for (how, devices), processes in settings.items():
        setting_seconds = seconds[how, devices]
        rates = [1.0 / each for each in setting_seconds]
        rows.append(
            {
                "P": size,
                "devices": devices,
                "how": how,
                "compile s": processes[0].compile_seconds,
                "gradient steps/s": spread(rates),
                "of each learner": Interval(*(rate / size for rate in spread(rates))),
                "over one by one": ratio(seconds[_BASELINE], setting_seconds),
            }
        )
    return rows


def main() -> None:
    """Compile the program, then run it for some seconds for every line on standard input."""
    # Several processes may share a GPU; by default JAX would preallocate most of its memory.
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
    """Repeat a case for at least ``seconds``; wait for each call, as a run does for its chunks."""
    import jax

    start, steps, elapsed = time.perf_counter(), 0.0, 0.0
    while steps == 0 or elapsed < seconds:
        jax.block_until_ready(case.run())
        steps += case.work
        elapsed = time.perf_counter() - start
    return {"seconds": elapsed, "gradient_steps": steps}


if __name__ == "__main__":
    main()
