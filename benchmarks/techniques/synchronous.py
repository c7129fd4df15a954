"""Techniques that are measured with synchronous dispatch on the CPU, as ``jaxdqn run`` uses it.

JAX fixes the dispatch mode when its backend starts, so the measurement runs in a new process:
``python -m benchmarks.techniques.synchronous MODULE:FUNCTION EFFORT`` prints the results as JSON.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable

import jax

from benchmarks.processes import Process
from benchmarks.techniques.registry import Result
from benchmarks.timing import Effort, Interval, compile_cold
from jaxdqn.cli.backend import use_cpu_dispatch
from jaxdqn.config.config import Config

Measure = Callable[[Effort], list[Result]]


def with_synchronous_dispatch(measure: Measure) -> Measure:
    """Return a function that calls ``measure`` in a new process with synchronous dispatch.

    On an accelerator it calls ``measure`` in this process, because two processes cannot share the
    accelerator.

    Args:
        measure: function at the top level of a module.
    """

    @functools.wraps(measure)
    def measured(effort: Effort) -> list[Result]:
        if jax.default_backend() != "cpu":
            return measure(effort)
        name = f"{measure.__module__}:{measure.__name__}"
        words = ["-m", "benchmarks.techniques.synchronous", name, json.dumps(effort._asdict())]
        process = Process([sys.executable, *words])
        try:
            answer = process.receive()
        finally:
            process.close()
        if "missing" in answer:
            raise RuntimeError(f"{name}: {answer['missing']}")
        return [_result(**fields) for fields in answer["results"]]

    return measured


def _result(speed_up: list[float], **fields: str) -> Result:
    return Result(speed_up=Interval(*speed_up), **fields)


def main(name: str, effort: str) -> None:
    """Measure the technique of a function ``MODULE:FUNCTION`` and print its results."""
    use_cpu_dispatch(Config(), "sync")
    fields = Effort(**json.loads(effort))
    if not fields.quick:
        compile_cold()
    module, _, function = name.partition(":")
    measure = getattr(importlib.import_module(module), function)
    # The decorated function would start another process.
    results = getattr(measure, "__wrapped__", measure)(fields)
    print(json.dumps({"results": [each._asdict() for each in results]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
