"""Measurements of the techniques of the training loop."""

from __future__ import annotations

import os
from typing import Any

import jax

from benchmarks import workloads
from benchmarks.configs import BREAKOUT, CARTPOLE, matched, sized
from benchmarks.processes import Process, alternate_processes
from benchmarks.techniques.registry import Result, learning_cases, speed_ups
from benchmarks.timing import Case, Effort, compile_timed, ratio
from jaxdqn.training import trainer as training


def measure_device_loop(effort: Effort) -> list[Result]:
    """Measure a scan on the device relative to a Python loop over steps."""
    config = matched()
    scanned = workloads.prepare_learning(config, effort.iterations).case
    trainer = training.make_trainer(config)
    state = jax.jit(trainer.init)(jax.random.key(0))
    step, _ = compile_timed(trainer.step, state, donate=(0,))
    one_step = workloads.carried(step, state)

    def loop() -> Any:
        for _ in range(effort.iterations):
            out = one_step()
        return out

    def loop_with_losses() -> float:
        return sum(float(one_step()[1].loss) for _ in range(effort.iterations))

    cases = {
        "Python loop": Case(loop, effort.iterations),
        "Python loop that reads each loss": Case(loop_with_losses, effort.iterations),
        "scan on the device": scanned,
    }
    return speed_ups(cases, effort, of="iterations")


def measure_vectorised(effort: Effort) -> list[Result]:
    """Measure acting in E environments relative to one."""
    results = []
    sizes = (1, 16) if effort.quick else (1, 4, 16, 64, 256, 1024)
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        cases = {}
        for num_envs in sizes:
            config = sized(env, num_envs=num_envs)
            case = workloads.prepare_acting(config, effort.iterations).case
            cases[f"{env} E={num_envs}"] = case._replace(work=case.work * num_envs)
        results += speed_ups(cases, effort, of="rows acted")
    return results


def measure_clipping(effort: Effort) -> list[Result]:
    """Measure each way of bounding gradients relative to none."""
    configs = {
        "no clipping": matched(),
        "by value": matched(clip_value=1.0),
        "by global norm": matched(clip_norm=10.0),
        "unit norm": matched(normalize_gradients=True),
    }
    return speed_ups(learning_cases(configs, effort), effort, of="gradient steps")


def measure_batch(effort: Effort) -> list[Result]:
    """Measure large batches relative to a batch of 32."""
    sizes = (32, 128) if effort.quick else (32, 128, 512, 2048)
    configs = {f"B={size}": matched(batch_size=size) for size in sizes}
    cases = learning_cases(configs, effort, work=lambda config: config.batch_size)
    return speed_ups(cases, effort, of="rows learned from")


def measure_precision(effort: Effort) -> list[Result]:
    """Measure bfloat16 relative to float32."""
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        configs = {
            f"{env} {precision}": matched(env, precision=precision)
            for precision in ("float32", "bfloat16")
        }
        results += speed_ups(learning_cases(configs, effort), effort, of="gradient steps")
    return results


def measure_convolution(effort: Effort) -> list[Result]:
    """Measure the convolution by patches relative to XLA's."""
    batch_size = 32 if effort.quick else 128
    configs = {
        f"{convolution}, B={batch_size}": matched(
            BREAKOUT, convolution=convolution, batch_size=batch_size
        )
        for convolution in ("lax", "patches")
    }
    brief = effort._replace(iterations=max(1, effort.iterations // 5))
    return speed_ups(learning_cases(configs, brief), effort, of="gradient steps")


def measure_cpu_threads(effort: Effort) -> list[Result]:
    """Measure one XLA thread on CPU relative to one per core."""
    if jax.default_backend() != "cpu":
        return []
    against, case = f"all {os.cpu_count()} cores", "one thread"
    iterations = effort.iterations * 10
    processes = {
        against: Process.jaxdqn(iterations, None),
        case: Process.jaxdqn(iterations, 1),
    }
    answers = alternate_processes(processes, rounds=effort.rounds)
    seconds = {name: [each["seconds"] for each in answers[name]] for name in processes}
    return [Result(case, against, ratio(seconds[against], seconds[case]), "iterations")]
