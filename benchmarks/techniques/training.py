"""Techniques of the training loop."""

from __future__ import annotations

import os
from typing import Any

import jax

from benchmarks import workloads
from benchmarks.processes import Process
from benchmarks.techniques.registry import Effort, Result, faster, learning_cases
from benchmarks.timing import Case, compile_apart, ratio
from benchmarks.workloads import BREAKOUT, CARTPOLE, matched
from jaxdqn.training import trainer as training


def measure_device_loop(effort: Effort) -> list[Result]:
    config = matched()
    scanned = workloads.prepare_learning(config, effort.iterations).case
    trainer = training.make_trainer(config)
    state = jax.jit(trainer.init)(jax.random.key(0))
    step, _ = compile_apart(trainer.step, state, donate=(0,))
    one = workloads.carried(step, state)

    def called() -> Any:
        for _ in range(effort.iterations):
            out = one()
        return out

    def read() -> float:
        return sum(float(one()[1].loss) for _ in range(effort.iterations))

    cases = {
        "Python calls each step": Case(called, effort.iterations),
        "Python also reads each loss": Case(read, effort.iterations),
        "scan on the device": scanned,
    }
    return faster(cases, effort, of="iterations")


def measure_vectorised(effort: Effort) -> list[Result]:
    results = []
    sizes = (1, 16) if effort.quick else (1, 4, 16, 64, 256, 1024)
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        cases = {}
        for num_envs in sizes:
            config = workloads.sized(env, num_envs=num_envs)
            case = workloads.prepare_acting(config, effort.iterations).case
            cases[f"{env} E={num_envs}"] = case._replace(work=case.work * num_envs)
        results += faster(cases, effort, of="rows acted")
    return results


def measure_clipping(effort: Effort) -> list[Result]:
    configs = {
        "no clipping": matched(),
        "by value": matched(clip_value=1.0),
        "by global norm": matched(clip_norm=10.0),
        "unit norm": matched(normalize_gradients=True),
    }
    return faster(learning_cases(configs, effort), effort, of="gradient steps")


def measure_batch(effort: Effort) -> list[Result]:
    sizes = (32, 128) if effort.quick else (32, 128, 512, 2048)
    configs = {f"B={size}": matched(batch_size=size) for size in sizes}
    cases = learning_cases(configs, effort, work=lambda config: config.batch_size)
    return faster(cases, effort, of="rows learned from")


def measure_precision(effort: Effort) -> list[Result]:
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        configs = {
            f"{env} {precision}": matched(env, precision=precision)
            for precision in ("float32", "bfloat16")
        }
        results += faster(learning_cases(configs, effort), effort, of="gradient steps")
    return results


def measure_convolution(effort: Effort) -> list[Result]:
    batch_size = 32 if effort.quick else 128
    configs = {
        f"{how}, B={batch_size}": matched(BREAKOUT, convolution=how, batch_size=batch_size)
        for how in ("lax", "patches")
    }
    brief = effort._replace(iterations=max(1, effort.iterations // 5))
    return faster(learning_cases(configs, brief), effort, of="gradient steps")


def measure_cpu_threads(effort: Effort) -> list[Result]:
    if jax.default_backend() != "cpu":
        return []
    processes = {
        f"all {os.cpu_count()} cores": Process.own(effort.iterations * 10, None),
        "one thread": Process.own(effort.iterations * 10, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    try:
        for process in processes.values():
            process.receive()
        for turn in range(effort.rounds):
            for name in list(processes)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(processes[name].measure()["seconds"])
    finally:
        for process in processes.values():
            process.close()
    against, case = processes
    return [Result(case, against, ratio(seconds[against], seconds[case]), "iterations")]
