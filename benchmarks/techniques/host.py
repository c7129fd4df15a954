"""Measurements of the techniques for environments on the host."""

from __future__ import annotations

import importlib.util
import os
from contextlib import ExitStack
from typing import Any

import jax

from benchmarks.host import Prolonged, host_config, prepare_host
from benchmarks.techniques.plain_loop import plain_loop
from benchmarks.techniques.registry import Result, Skipped, speed_ups
from benchmarks.techniques.synchronous import with_synchronous_dispatch
from benchmarks.timing import Case, Effort
from jaxdqn import envs

_SLOW = 0.005
"""Seconds added to each vector step to imitate a slow simulator."""


def _case(config: Any, effort: Effort, *, seconds: float = 0.0) -> Case:
    """Return a few iterations of learning, counted in rows."""
    host = envs.configured_host_environment(config)
    assert host is not None
    if seconds:
        make = host.make
        host = host._replace(make=lambda num_envs: Prolonged(make(num_envs), seconds))
    iterations = max(2, effort.iterations // (10 * config.rollout_length))
    prepared = prepare_host(config, iterations, host)
    prepared.learn()
    return Case(prepared.learn, float(iterations * config.rows_per_iteration))


@with_synchronous_dispatch
def measure_overlap(effort: Effort) -> list[Result]:
    """Measure acting during the gradient steps relative to acting between them."""
    results = []
    for name, sizes, hidden, seconds in (
        ("CartPole-v1", (8, 4, 32, 1), (64, 64), 0.0),
        ("simulator of 5 ms", (8, 8, 256, 8), (512, 512), _SLOW),
    ):
        fields: dict[str, dict[str, Any]] = {
            f"{name}, in turn": {"overlap": False},
            f"{name}, overlapped": {"overlap": True},
        }
        if jax.default_backend() != "cpu":
            fields[f"{name}, overlapped, acting on the CPU"] = {"act_on": "cpu"}
        cases = {
            case: _case(host_config(*sizes, hidden_sizes=hidden, **more), effort, seconds=seconds)
            for case, more in fields.items()
        }
        results += speed_ups(cases, effort, of="rows")
    return results


@with_synchronous_dispatch
def measure_python_loop(effort: Effort) -> list[Result]:
    """Measure the trainer of host environments relative to a plain loop in Python."""
    config = host_config(8, 4, 32, 1, hidden_sizes=(64, 64), overlap=False)
    iterations = max(2, effort.iterations // 10)
    work = float(iterations * config.rows_per_iteration)
    devices = {"plain loop, learner on the CPU": jax.devices("cpu")[0]}
    if jax.default_backend() != "cpu":
        devices["plain loop, learner on the device"] = jax.devices()[0]
    with ExitStack() as stack:
        cases = {
            name: Case(plain_loop(config, iterations, device, stack), work)
            for name, device in devices.items()
        }
        cases["library, in turn"] = _case(config, effort)
        return speed_ups(cases, effort, of="rows")


def measure_envpool(effort: Effort) -> list[Result]:
    """Measure steps of EnvPool's threads relative to Gymnasium's processes."""
    if importlib.util.find_spec("envpool") is None:
        raise Skipped("EnvPool is not installed: pip install envpool")
    from jaxdqn.config.config import Config

    num_envs, cases = 8, {}
    settings: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("Gymnasium, a process each", "gymnasium:CartPole-v1", {"env_processes": True}),
        ("Gymnasium, one process", "gymnasium:CartPole-v1", {}),
        ("EnvPool", "envpool:CartPole-v1", {}),
    )
    with ExitStack() as stack:
        for name, env, more in settings:
            host = envs.configured_host_environment(Config(env=env, num_envs=num_envs, **more))
            assert host is not None
            vector = host.make(num_envs)
            stack.callback(vector.close)
            vector.reset(0)
            cases[name] = _stepping(vector, num_envs, effort)
        return speed_ups(cases, effort, of="rows")


@with_synchronous_dispatch
def measure_host_environments(effort: Effort) -> list[Result]:
    """Measure several environments on the host relative to one, with one gradient step per row."""
    sizes = (1, 8) if effort.quick else (1, 4, 8, 16, 64)
    cases = {
        f"E={size}": _case(host_config(size, 4, 32, 4 * size, hidden_sizes=(64, 64)), effort)
        for size in sizes
    }
    return speed_ups(cases, effort, of="rows")


def measure_workers(effort: Effort) -> list[Result]:
    """Measure steps of the environments only, in several processes relative to one process."""
    results = []
    num_envs = os.cpu_count() or 1
    for name, seconds in (("CartPole-v1", 0.0), ("CartPole-v1 of 1 ms more a step", 0.001)):
        with ExitStack() as stack:
            cases = {}
            for how, processes in (("one process", False), ("a process each", True)):
                vector = _environment(seconds, processes=processes).make(num_envs)
                stack.callback(vector.close)
                vector.reset(0)
                cases[f"{name}, {how}"] = _stepping(vector, num_envs, effort)
            results += speed_ups(cases, effort, of="rows")
    return results


class _Sleeping:
    """Function that makes CartPole with longer steps; it can be sent to another process."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> Any:
        import gymnasium

        class Sleeping(gymnasium.Wrapper[Any, Any, Any, Any]):
            def step(self, action: Any, seconds: float = self.seconds) -> Any:
                import time

                time.sleep(seconds)
                return self.env.step(action)

        env = gymnasium.make("CartPole-v1")
        return Sleeping(env) if self.seconds else env


def _environment(seconds: float, *, processes: bool) -> Any:
    from jaxdqn.envs.vector.gymnasium import from_gymnasium

    return from_gymnasium(_Sleeping(seconds), "CartPole-v1", processes=processes)


def _stepping(vector: Any, num_envs: int, effort: Effort) -> Case:
    import numpy as np

    actions = np.arange(num_envs, dtype=np.int32) % 2
    steps = max(1, effort.iterations // 2)

    def run() -> Any:
        for _ in range(steps):
            timestep = vector.step(actions)
        return timestep.obs

    return Case(run, float(steps * num_envs))
