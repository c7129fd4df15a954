"""Measurements of the techniques over several devices and learners.

``python -m benchmarks.techniques.devices`` is the process with several virtual devices. It compiles
and times the cases in each line on its standard input.
"""

from __future__ import annotations

import atexit
import json
import math
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from benchmarks.processes import Process
from benchmarks.techniques.registry import Result, Skipped, compared
from benchmarks.timing import Case, Effort
from jaxdqn.config.config import Config, from_dict, to_dict
from jaxdqn.errors import RunFailed

_ALL_REDUCE = "float32 all-reduce"
_ENVS = ("CartPole-v1", "Breakout-MinAtar")
_SIZES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"num_envs": 16, "batch_size": 128, "hidden_sizes": (120, 84)},
    "Breakout-MinAtar": {"num_envs": 16, "batch_size": 512},
}
_UNIT = 96
"""Divisor of the number of iterations in a call, required by averaging; all forms use the same, so
that they share a baseline."""
_SEEDS = {True: (4,), False: (4, 16, 64)}
"""Sizes of a population, with and without ``--quick``."""


def measure_data_parallel(effort: Effort) -> list[Result]:
    """Measure one batch divided over two devices relative to one device."""
    results = []
    for env in _envs(effort):
        configs = {f"{env}, 1 device": _config(env, devices=1)}
        for mapping in ("shard_map",) if effort.quick else ("shard_map", "pmap"):
            configs[f"{env}, 2 devices, {mapping}"] = _config(env, mapping=mapping)
        results += compared(_times(configs, _rounded(effort)), of="gradient steps")
    return results


def measure_forms(forms: Mapping[str, dict[str, Any]]) -> Callable[[Effort], list[Result]]:
    """Return a measurement of forms of communication relative to an all-reduce of gradients.

    Args:
        forms: fields of the configuration of each form.
    """

    def measure(effort: Effort) -> list[Result]:
        from benchmarks.scaling.cases import parameter_shapes
        from jaxdqn.communication.cost import bytes_per_gradient_step

        results = []
        for env in _envs(effort):
            configs = {f"{env}, {_ALL_REDUCE}": _config(env)}
            configs |= {f"{env}, {form}": _config(env, **fields) for form, fields in forms.items()}
            times, notes = _times(configs, _rounded(effort)), {}
            baseline = next(iter(configs.values()))
            shapes = parameter_shapes(_config(env, devices=1))
            for name, config in configs.items():
                # A step with accumulation learns from more rows.
                learned = config.rows_per_gradient_step / baseline.rows_per_gradient_step
                times[name] = [each / learned for each in times[name]]
                sent = bytes_per_gradient_step(config, sum(map(math.prod, shapes)), shapes).total
                notes[name] = f"{sent:,.0f} bytes a gradient step"
            results += compared(times, of="rows learned from", notes=notes)
        return results

    return measure


def measure_model_parallel(effort: Effort) -> list[Result]:
    """Measure wide layers divided over two devices relative to one device."""
    width = 1_024 if effort.quick else 4_096
    single = {"num_envs": 16, "batch_size": 64, "hidden_sizes": (width, width)}
    brief = effort._replace(iterations=max(1, min(4, effort.iterations)))
    configs = {
        "1 x 1": _sized("CartPole-v1", devices=1, **single),
        "1 x 2": _sized("CartPole-v1", devices=2, model_devices=2, **single),
    }
    return compared(_times(configs, brief), of="gradient steps")


def measure_population(effort: Effort) -> list[Result]:
    """Measure learners in one program relative to one learner, in gradient steps of all."""
    sizes = _SEEDS[effort.quick]
    single = _sized("CartPole-v1", devices=1, num_envs=10, batch_size=128, hidden_sizes=(120, 84),
                    replay_capacity=32_000)  # fmt: skip
    configs = {"one by one": single}
    for size in sizes:
        for how in ("map", "vmap"):
            configs[f"P={size}, {how}"] = _changed(single, num_seeds=size, population=how)
    return compared(_times(configs, effort), of="gradient steps of all")


def _rounded(effort: Effort) -> Effort:
    return effort._replace(iterations=-(-effort.iterations // _UNIT) * _UNIT)


def _envs(effort: Effort) -> tuple[str, ...]:
    return _ENVS[:1] if effort.quick else _ENVS


def _config(env: str, **fields: Any) -> Config:
    return _sized(env, **{"devices": 2, **_SIZES[env], **fields})


def _sized(env: str, **fields: Any) -> Config:
    from benchmarks.scaling.cases import divisible

    return divisible(env, **fields)


def _changed(config: Config, **fields: Any) -> Config:
    return from_dict({**to_dict(config), **fields})


def _times(configs: Mapping[str, Config], effort: Effort) -> dict[str, list[float]]:
    """Return seconds per gradient step of all learners, [rounds] for each configuration.

    On CPU the configurations are measured in a process with two virtual devices, because JAX fixes
    the number of devices when it starts. Accelerators are used in this process, because processes
    cannot share them.

    Raises:
        Skipped: if there are too few accelerators.
        RunFailed: if the process exits.
    """
    import jax

    needed = max(config.devices for config in configs.values())
    if jax.default_backend() != "cpu":
        if jax.device_count() < needed:
            raise Skipped(f"needs {needed} devices; there is {jax.device_count()}")
        return _measure(configs, effort)
    process = _worker()
    cases = {name: to_dict(config) for name, config in configs.items()}
    process.send(json.dumps({"cases": cases, "effort": effort}))
    answer = process.receive()
    if "missing" in answer:
        _worker.cache_clear()
        raise RunFailed(f"process with virtual devices: {answer['missing']}")
    return answer


@lru_cache(maxsize=1)
def _worker() -> Process:
    """Start the process with two virtual devices; techniques share it and its compiled programs."""
    process = Process([sys.executable, "-m", "benchmarks.techniques.devices"])
    atexit.register(process.close)
    return process


def _measure(configs: Mapping[str, Config], effort: Effort) -> dict[str, list[float]]:
    from benchmarks.scaling.cases import times_of_devices

    cases = {name: _prepared(config, effort.iterations) for name, config in configs.items()}
    return times_of_devices(cases, effort)


@lru_cache(maxsize=4)
def _prepared(config: Config, iterations: int) -> Case:
    from benchmarks.scaling.cases import prepare

    return prepare(config, iterations, mapped=False)


def main() -> None:
    """Time the cases of every line on standard input."""
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    for line in sys.stdin:
        request = json.loads(line)
        configs = {name: from_dict(fields) for name, fields in request["cases"].items()}
        print(json.dumps(_measure(configs, Effort(*request["effort"]))), flush=True)


if __name__ == "__main__":
    main()
