"""Measurements of the techniques of the training loop."""

from __future__ import annotations

import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from benchmarks import resets, workloads
from benchmarks.configs import BREAKOUT, CARTPOLE, matched, sized
from benchmarks.processes import Process, alternate_processes
from benchmarks.techniques.registry import Result, Skipped, learning_cases, speed_ups
from benchmarks.timing import Case, Effort, compile_timed, ratio
from jaxdqn.agent.optimizer import pack_small
from jaxdqn.config.config import Config
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


def measure_donation(effort: Effort) -> list[Result]:
    """Measure chunks with a donated state relative to chunks that copy the state."""
    rows = 2**16 if effort.quick else 2**20
    config = matched(num_envs=16, replay_capacity=rows, total_rows=4 * rows)
    trainer = training.make_trainer(config)
    cases = {}
    for name, donate in (("copied state", ()), ("donated state", (0,))):
        state = jax.jit(trainer.init)(jax.random.key(0))
        compiled, _ = compile_timed(trainer.chunk(10), state, donate=donate)
        cases[name] = Case(workloads.carried(compiled, state), 10)
    return speed_ups(cases, effort, of="iterations")


def measure_random_numbers(effort: Effort) -> list[Result]:
    """Measure other generators of random bits relative to threefry."""
    cases = {}
    for generator in ("threefry2x32", "rbg", "unsafe_rbg"):
        with jax.default_prng_impl(generator):
            prepared = workloads.prepare_learning(matched(), effort.iterations)
        cases[generator] = prepared.case
    return speed_ups(cases, effort, of="iterations")


def measure_packed_optimiser(effort: Effort) -> list[Result]:
    """Measure updates of small tensors packed into one vector, relative to separate updates."""
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        adam = optax.adam(1e-3)
        forms = {"each tensor": adam, "small tensors packed": pack_small(adam),
                 "all tensors flattened": optax.flatten(adam)}  # fmt: skip
        params = jax.jit(training.make_trainer(matched(env)).init)(jax.random.key(0)).agent.params
        cases = {
            f"{env}, {name}": _updates(form, params, effort.iterations)
            for name, form in forms.items()
        }
        results += speed_ups(cases, effort, of="optimiser updates")
    return results


def _updates(optimizer: optax.GradientTransformation, params: Any, iterations: int) -> Case:
    """Return updates in a scan; gradients depend on the parameters, so they are not hoisted."""

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        grads = jax.tree.map(lambda leaf: 0.1 * leaf, params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(carry: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, carry, None, length=iterations)

    with jax.numpy_dtype_promotion("standard"):
        carry = (jax.tree.map(jnp.copy, params), optimizer.init(params))
        compiled, _ = compile_timed(run, carry, donate=(0,))
    return Case(workloads.carried(compiled, carry), iterations)


def measure_resets(effort: Effort) -> list[Result]:
    """Measure resets computed in bulk relative to resets computed at every step."""
    results = []
    for cost, products in (
        (("expensive", 100),) if effort.quick else (("cheap", 0), ("expensive", 100))
    ):
        cases = {
            f"{cost} reset, {how}": resets.make_case(products, how, 8)
            for how in ("every-step", "pooled")
        }
        results += speed_ups(cases, effort, of="environment steps")
    return results


def measure_large_batch(effort: Effort) -> list[Result]:
    """Measure one step with a large batch and learning rate relative to several steps, for equal
    rows."""
    factors = (8,) if effort.quick else (8, 32)
    results = []
    for factor in factors:
        configs = {
            f"{factor} steps of B=128": matched(gradient_steps=factor),
            f"one step of B={128 * factor}, {factor} times the rate": matched(
                batch_size=128 * factor, learning_rate=factor * Config().learning_rate
            ),
        }
        brief = effort._replace(iterations=max(1, effort.iterations // factor))
        cases = learning_cases(configs, brief, lambda _, factor=factor: 128 * factor)  # type: ignore[misc]
        results += speed_ups(cases, brief, of="rows learned from")
    return results


def measure_replay_ratio(effort: Effort) -> list[Result]:
    """Measure several vector steps per gradient step relative to one vector step."""
    lengths = (1, 8) if effort.quick else (1, 4, 16, 64)
    configs = {
        f"{128 / (10 * length):.3g} rows learned from for a row": matched(rollout_length=length)
        for length in lengths
    }
    cases = learning_cases(configs, effort, lambda config: config.rows_per_iteration)
    return speed_ups(cases, effort, of="rows acted")


def measure_vectorised(effort: Effort) -> list[Result]:
    """Measure acting in E environments relative to one environment."""
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
    """Measure each kind of gradient clipping relative to no clipping."""
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


def measure_int8_rounding(effort: Effort) -> list[Result]:
    """Measure acting with int8 weights relative to float32 weights."""
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        cases = {}
        precisions: tuple[Literal["float32", "int8"], ...] = ("float32", "int8")
        for precision in precisions:
            config = sized(env, num_envs=64, act_precision=precision)
            case = workloads.prepare_acting(config, effort.iterations).case
            cases[f"{env} {precision}"] = case._replace(work=case.work * config.num_envs)
        results += speed_ups(cases, effort, of="rows acted")
    return results


def measure_convolution(effort: Effort) -> list[Result]:
    """Measure the convolution by patches relative to that of XLA."""
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
    """Measure one XLA thread on CPU relative to one thread per core."""
    if jax.default_backend() != "cpu":
        raise Skipped("XLA runs on an accelerator, not on the CPU")
    against, case = f"all {os.cpu_count()} cores", "one thread"
    iterations = effort.iterations * 10
    processes = {
        against: Process.jaxdqn(iterations, None),
        case: Process.jaxdqn(iterations, 1),
    }
    answers = alternate_processes(processes, rounds=effort.rounds)
    seconds = {name: [each["seconds"] for each in answers[name]] for name in processes}
    return [Result(case, against, ratio(seconds[against], seconds[case]), "iterations")]
