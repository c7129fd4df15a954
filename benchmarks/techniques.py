"""The registry of techniques: what makes training fast, and by how much, measured.

To add a technique, write a function ``measure(effort) -> list[Result]`` and
``register`` it below.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import measure
from benchmarks.timing import Case, Interval, alternate, compile_apart, ratio
from benchmarks.versus import Process
from jaxdqn import trainer as training
from jaxdqn.config import Config
from jaxdqn.presets import preset
from jaxdqn.validation import suggest

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


def _measure_variant(**fields: Any) -> Callable[[Effort], list[Result]]:
    """Return what measures a variant of the algorithm against plain DQN, on two environments."""

    def measured(effort: Effort) -> list[Result]:
        results = []
        for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
            configs = {f"{env} plain": matched(env), f"{env} with it": matched(env, **fields)}
            results += faster(learning_cases(configs, effort), effort, of="gradient steps")
        return results

    return measured


def _measure_distributional(effort: Effort) -> list[Result]:
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        losses = {"C51": "categorical", "QR-DQN": "quantile", "IQN": "implicit_quantile"}
        configs = {f"{env} DQN": matched(env)}
        configs |= {f"{env} {name}": matched(env, loss=loss) for name, loss in losses.items()}
        brief = effort._replace(
            iterations=max(1, effort.iterations // (5 if env == BREAKOUT else 1))
        )
        results += faster(learning_cases(configs, brief), brief, of="gradient steps")
    return results


def _measure_pqn(effort: Effort) -> list[Result]:
    """Compare whole iterations of the same rows, gradient steps and batch."""
    size: dict[str, Any] = {"num_envs": 16, "rollout_length": 8}
    size = size if effort.quick else preset_size("pqn", BREAKOUT)
    passes: dict[str, Any] = {"minibatches": 4 if effort.quick else 32, "epochs": 2}
    pqn = Config(
        env=BREAKOUT, algorithm="pqn", loss="squared", optimizer="radam", clip_norm=10.0,
        layer_norm=True, total_steps=2**29, **size, **passes,
    )  # fmt: skip
    dqn = matched(
        BREAKOUT, loss="squared", optimizer="radam", clip_norm=10.0, layer_norm=True,
        batch_size=pqn.batch_per_device, gradient_steps=pqn.gradient_steps_per_iteration, **size,
    )  # fmt: skip
    cases = learning_cases(
        {"DQN": dqn, "PQN": pqn},
        effort._replace(iterations=2),
        lambda config: config.rows_per_iteration,
    )
    return faster(cases, effort, of="rows acted and learned from twice")


def preset_size(name: str, env: str) -> dict[str, Any]:
    """Return the environments and steps of an iteration of a preset."""
    config = preset(name, env=env)
    return {"num_envs": config.num_envs, "rollout_length": config.rollout_length}


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


def _scaling_rows(section: str, effort: Effort) -> list[dict[str, Any]]:
    """Return the rows of a section of ``benchmarks.scaling``.

    On CPU by a process of its own, since the number of virtual devices is settled
    when JAX starts; accelerators are there already, and are not shared.
    """
    from benchmarks import scaling_cases

    if jax.default_backend() != "cpu":
        most = jax.device_count()
        chosen = scaling_cases.QUICK if effort.quick else scaling_cases.FULL
        devices = tuple(count for count in chosen.devices if count <= most)
        return scaling_cases.measure_section(section, chosen._replace(devices=devices))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "scaling.json"
        command = [sys.executable, "-m", "benchmarks.scaling", "--sections", section]
        command += ["--json", str(file), "--virtual-devices", "2"]
        command += ["--quick"] if effort.quick else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())[section]


def _scaled(
    section: str, case: Sequence[str], against: str, column: str, of: str
) -> Callable[[Effort], list[Result]]:
    """Make a measurement of the rows of a section: each one's ratio, but for those of 1.

    Args:
      case: columns that name a row.
      column: of the ratio.
    """

    def measure(effort: Effort) -> list[Result]:
        results = []
        for row in _scaling_rows(section, effort):
            speed_up = row[column]
            if isinstance(speed_up, Mapping):
                speed_up = Interval(**speed_up)
            if tuple(speed_up) != (1.0, 1.0, 1.0):
                name = ", ".join(f"{name} {row[name]}" if name in "DP" else str(row[name])
                                 for name in case)  # fmt: skip
                results.append(Result(name, against, speed_up, of))
        return results

    return measure


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
        name="double",
        principle="the online network chooses the bootstrap action, the target network values it",
        good_for="values that are not too high: fewer environment steps, not more a second",
        costs="one more forward pass of the next observations",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=_measure_variant(double=True),
    )
)
register(
    Technique(
        name="prioritised-replay",
        principle="draw rows in proportion to their TD errors from a sum tree, and weigh them",
        good_for="sparse rewards and rare errors: fewer environment steps, not more a second",
        costs="the tree's draw and the writing of priorities at every gradient step",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=_measure_variant(replay="prioritized"),
    )
)
register(
    Technique(
        name="distributional",
        principle="learn the distribution of returns: on 51 fixed atoms (C51), or by 32 quantiles "
        "(QR-DQN), drawn anew each time (IQN)",
        good_for="more to learn from each row: fewer environment steps, not more a second",
        costs="an output for each atom of each action; for IQN the head once for each quantile",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=_measure_distributional,
    )
)
register(
    Technique(
        name="pqn",
        principle="no replay and no target network: Q(lambda) targets of the rows just acted, "
        "normalised layers, two passes in minibatches",
        good_for="many environments on one device; memory, of which a replay takes most",
        costs="each row is learned from twice and forgotten: more environment steps",
        measured_on="128 environments, 32 steps, 32 minibatches, 2 passes, MinAtar network; DQN "
        "with as many environments, gradient steps and rows of each",
        measure=_measure_pqn,
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
        name="data-parallel",
        principle="the same step on every device, on its own environments and replay; gradients "
        "averaged by an all-reduce, under shard_map or pmap",
        good_for="large batches and many environments; memory for replay grows with the devices",
        costs="an all-reduce for each gradient step, whose latency small networks do not hide",
        measured_on="one batch divided over 2 devices (virtual ones on CPU, sharing its cores)",
        measure=_scaled(
            "strong", ("setting", "D"), "1 device", "speed-up over 1", "gradient steps"
        ),
    )
)
register(
    Technique(
        name="communication",
        principle="fewer or smaller messages: accumulation, periodic averaging (local SGD), "
        "bfloat16, int8 and top-k with error feedback",
        good_for="slow links; averaging and accumulation also for latency",
        costs="accumulation: older gradients; averaging: replicas drift; compression: coding, and "
        "what is lost comes a step later",
        measured_on="one batch divided over 2 devices (virtual ones on CPU: memory is the link)",
        measure=_scaled(
            "communication",
            ("form", "setting", "D"),
            "float32 all-reduce",
            "speed-up",
            "rows learned from",
        ),
    )
)
register(
    Technique(
        name="model-parallel",
        principle="wide layers split over a model axis by the compiler, beside the data axis",
        good_for="networks whose parameters and optimiser do not fit, or are slow, on one device",
        costs="an all-reduce of activations in every layer pair",
        measured_on="CartPole-v1, MLP 4096-4096, B=64 (virtual devices on CPU)",
        measure=_scaled("model", ("data x model",), "1 x 1", "speed-up", "gradient steps"),
    )
)
register(
    Technique(
        name="population",
        principle="P learners in one program: stepped together by vmap, or one after the other by "
        "map, and divided over devices",
        good_for="sweeps and error bars; small learners that leave the device idle",
        costs="P times the memory; every learner runs as long as the longest",
        measured_on="CartPole-v1, E=10, B=128, MLP 120-84; on CPU over one and two virtual devices",
        measure=_scaled(
            "population",
            ("P", "how", "devices"),
            "one by one",
            "over one by one",
            "gradient steps of all",
        ),
    )
)
