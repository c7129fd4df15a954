"""The registry of techniques: what makes training fast, and by how much, measured.

To add a technique, write a function ``measure(effort) -> list[Result]`` and
``register`` it below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import measure
from benchmarks.timing import Case, Interval, alternate, compile_apart, ratio
from benchmarks.versus import Process
from jaxdqn import trainer as training
from jaxdqn.config import Config, suggest

CARTPOLE, BREAKOUT = "CartPole-v1", "Breakout-MinAtar"


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Of one measurement, at least about."""
    iterations: int
    """In one call of a compiled scan."""
    quick: bool
    """Whether to leave out the larger cases."""


FULL = Effort(rounds=9, seconds=0.3, iterations=200, quick=False)
QUICK = Effort(rounds=3, seconds=0.05, iterations=50, quick=True)


class Result(NamedTuple):
    """One case of a technique against what it is compared with."""

    case: str
    against: str
    speed_up: Interval
    """How many times faster; below 1 it is slower."""
    of: str
    """What is counted a second."""


class Technique(NamedTuple):
    """A way to make training fast, or something that training may need and what it costs."""

    name: str
    principle: str
    good_for: str
    costs: str
    measured_on: str
    measure: Callable[[Effort], list[Result]]


TECHNIQUES: dict[str, Technique] = {}


def register(technique: Technique) -> None:
    """Add a technique to the table.

    Raises:
      ValueError: if a field is empty, or the name is taken.
    """
    for field, value in technique._asdict().items():
        if not value:
            raise ValueError(f"{field}={value!r}: must not be empty (technique {technique.name!r})")
    if technique.name in TECHNIQUES:
        raise ValueError(f"name={technique.name!r}: must not be registered twice")
    TECHNIQUES[technique.name] = technique


def chosen(names: Sequence[str]) -> list[Technique]:
    """Return the techniques of these names, or all.

    Raises:
      ValueError: if there is no such technique, with the nearest names.
    """
    for name in names:
        if name not in TECHNIQUES:
            raise ValueError(f"only={name!r}: must be among {suggest(name, list(TECHNIQUES))}")
    return [TECHNIQUES[name] for name in names or TECHNIQUES]


def faster(
    cases: Mapping[str, Case], effort: Effort, *, of: str, against: str | None = None
) -> list[Result]:
    """Time cases in turn; return the speed-up of each over the one named ``against``.

    Args:
      cases: their work is counted in what is compared.
      against: the first case by default.
    """
    against = against or next(iter(cases))
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return [
        Result(name, against, ratio(times[against], times[name]), of)
        for name in cases
        if name != against
    ]


def learning_cases(
    configs: Mapping[str, Config],
    effort: Effort,
    work: Callable[[Config], float] = lambda config: config.gradient_steps_per_iteration,
) -> dict[str, Case]:
    """Compile learning iterations of each configuration.

    Args:
      work: units of an iteration; gradient steps by default.
    """
    cases = {}
    for name, config in configs.items():
        case = measure.prepare_learning(config, effort.iterations).case
        cases[name] = case._replace(work=case.work * work(config))
    return cases


def matched(env: str = CARTPOLE, **more: Any) -> Config:
    """Return E=10, K=1, M=1, B=128, with an MLP of 120 and 84 units on vectors."""
    fields = {"num_envs": 10, "hidden_sizes": (120, 84), **more}
    return measure.sized(env, **fields)


def _measure_device_loop(effort: Effort) -> list[Result]:
    config = matched()
    scanned = measure.prepare_learning(config, effort.iterations).case
    trainer = training.make_trainer(config)
    state = jax.jit(trainer.init)(jax.random.key(0))
    step, _ = compile_apart(trainer.step, state, donate=(0,))
    one = measure.carried(step, state)

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


def _measure_vectorised(effort: Effort) -> list[Result]:
    results = []
    sizes = (1, 16) if effort.quick else (1, 4, 16, 64, 256, 1024)
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        cases = {}
        for num_envs in sizes:
            config = measure.sized(env, num_envs=num_envs)
            case = measure.prepare_acting(config, effort.iterations).case
            cases[f"{env} E={num_envs}"] = case._replace(work=case.work * num_envs)
        results += faster(cases, effort, of="rows acted")
    return results


def _measure_clipping(effort: Effort) -> list[Result]:
    configs = {
        "no clipping": matched(),
        "by value": matched(clip_value=1.0),
        "by global norm": matched(clip_norm=10.0),
        "unit norm": matched(normalize_gradients=True),
    }
    return faster(learning_cases(configs, effort), effort, of="gradient steps")


def _measure_batch(effort: Effort) -> list[Result]:
    sizes = (32, 128) if effort.quick else (32, 128, 512, 2048)
    configs = {f"B={size}": matched(batch_size=size) for size in sizes}
    cases = learning_cases(configs, effort, work=lambda config: config.batch_size)
    return faster(cases, effort, of="rows learned from")


def _measure_n_step(effort: Effort) -> list[Result]:
    configs = {f"N={n}": matched(n_step=n) for n in ((1, 3) if effort.quick else (1, 3, 5, 10))}
    return faster(learning_cases(configs, effort), effort, of="gradient steps")


def _measure_precision(effort: Effort) -> list[Result]:
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        configs = {
            f"{env} {precision}": matched(env, precision=precision)
            for precision in ("float32", "bfloat16")
        }
        results += faster(learning_cases(configs, effort), effort, of="gradient steps")
    return results


def _measure_convolution(effort: Effort) -> list[Result]:
    batch_size = 32 if effort.quick else 128
    configs = {
        f"{how}, B={batch_size}": matched(BREAKOUT, convolution=how, batch_size=batch_size)
        for how in ("lax", "patches")
    }
    brief = effort._replace(iterations=max(1, effort.iterations // 5))
    return faster(learning_cases(configs, brief), effort, of="gradient steps")


def _measure_population(effort: Effort) -> list[Result]:
    seeds, rows = (4, 2_048) if effort.quick else (16, 21_024)
    config = matched(total_steps=rows, log_every=rows)
    run = training.train(config)
    keys = jax.random.split(jax.random.key(0), seeds)
    together, _ = compile_apart(jax.vmap(run), keys)
    alone, _ = compile_apart(run, keys[0])
    each = list(keys)

    def one_after_the_other() -> Any:
        return [jax.block_until_ready(alone(key)) for key in each]

    cases = {
        "one after the other": Case(one_after_the_other, seeds),
        f"vmap of {seeds} seeds": Case(lambda: together(keys), seeds),
    }
    return faster(cases, effort, of="whole runs")


def _measure_cpu_threads(effort: Effort) -> list[Result]:
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


_MATCHED = "CartPole-v1, E=10, K=1, M=1, B=128, MLP 120-84, whole iterations"

register(
    Technique(
        name="device-loop",
        principle="lax.scan over iterations: acting, replay and learning are one program",
        good_for="small networks and fast environments, where dispatch and transfers dominate",
        costs="no Python between iterations; logging and evaluation wait for the chunk's end",
        measured_on=_MATCHED,
        measure=_measure_device_loop,
    )
)
register(
    Technique(
        name="vectorised-environments",
        principle="vmap over environments: one program steps E of them",
        good_for="throughput of acting; diverse data; it fills the device",
        costs="E times the state; larger steps of data between gradient steps",
        measured_on="acting alone (act, environment, ring), K=1, default network",
        measure=_measure_vectorised,
    )
)
register(
    Technique(
        name="cpu-threads",
        principle="one thread for XLA on CPU: small operations are not handed from core to core",
        good_for="dense networks of up to some 2 million multiply-adds a batch; many runs side by "
        "side; --cpu-threads chooses so by itself",
        costs="large products use one core",
        measured_on=_MATCHED,
        measure=_measure_cpu_threads,
    )
)
register(
    Technique(
        name="gradient-clipping",
        principle="by value bounds each element (it turns the gradient); by global norm scales "
        "a large one down; unit norm scales every one to length 1",
        good_for="stability under rare large errors; step lengths free of the reward's scale",
        costs="a pass over the gradient; by value changes its direction",
        measured_on=_MATCHED,
        measure=_measure_clipping,
    )
)
register(
    Technique(
        name="batch-size",
        principle="one gradient of more rows: larger matrix products, the same overheads",
        good_for="rows learned from a second, less noise in the gradient",
        costs="fewer gradient steps a second; returns diminish when the device is full",
        measured_on="CartPole-v1, E=10, K=1, M=1, MLP 120-84, whole iterations",
        measure=_measure_batch,
    )
)
register(
    Technique(
        name="n-step",
        principle="sum N rewards before the bootstrap, gathered when sampling",
        good_for="rewards that reach back N times as far in one update",
        costs="N times the gathers of flags and rewards; off-policy bias",
        measured_on=_MATCHED,
        measure=_measure_n_step,
    )
)
register(
    Technique(
        name="precision",
        principle="compute the network in bfloat16; parameters and losses stay float32",
        good_for="devices with bfloat16 matrix units; half the activations' memory",
        costs="8 bits of significand; slower where the device converts in software",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=_measure_precision,
    )
)
register(
    Technique(
        name="convolution",
        principle="a convolution as shifted slices times a matrix, same parameters",
        good_for="convolutions inside a scan on CPU, which XLA runs without its fast kernels",
        costs="memory for the patches; on accelerators the built-in one may be faster",
        measured_on="Breakout-MinAtar, E=10, K=1, M=1, MinAtar network, whole iterations",
        measure=_measure_convolution,
    )
)
register(
    Technique(
        name="population",
        principle="vmap over seeds or hyper-parameters: P learners in one program",
        good_for="sweeps and error bars; small learners that leave the device idle",
        costs="P times the memory; every learner runs as long as the longest",
        measured_on="CartPole-v1, jaxdqn.train, E=10, B=128, MLP 120-84, compilation apart",
        measure=_measure_population,
    )
)
