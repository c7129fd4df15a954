"""Cases of ``benchmarks.scaling``: mapped learning and all-reduces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import configs
from benchmarks.scaling.plan import Plan
from benchmarks.scaling.population import measure_population
from benchmarks.timing import Case, Effort, Interval, alternate, microseconds, ratio

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

Section = Literal["unmapped", "link", "strong", "weak", "communication", "model", "population"]
_FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "accumulate 4": {"accumulate": 4},
    "average every 8": {"average_every": 8, "target_period": 96},
    "average every 8, moments": {
        "average_every": 8, "average_moments": True, "target_period": 96,
    },
    "bfloat16": {"compression": "bfloat16"},
    "int8": {"compression": "int8"},
    "top-k 1%": {"compression": "top_k"},
}  # fmt: skip
"""Configuration fields of each form of communication."""
_FEW_ROUNDS, _ROUNDS_UNMAPPED = 3, 21
"""With more than ``_FEW_ROUNDS`` rounds the section ``unmapped`` measures ``_ROUNDS_UNMAPPED``
rounds, because its ratio is near 1 and needs a narrow interval."""


def prepare(
    config: Config,
    iterations: int,
    *,
    silent: bool = False,
    mapped: bool = True,
    mapping: Literal["shard_map", "pmap"] | None = None,
) -> Case:
    """Compile learning iterations as in a run; work is counted in gradient steps.

    Args:
        config: configuration of the run.
        iterations: iterations per call.
        silent: skip all communication between devices; the learned values are then wrong.
        mapped: map over the devices even if there is only one.
        mapping: mapping over a single device; None selects that of the configuration.
    """
    from benchmarks.workloads import prepare_trainer
    from jaxdqn.parallel import across_devices, device_collectives
    from jaxdqn.parallel.build import make_mapped_trainer, run_devices
    from jaxdqn.training.trainer import make_trainer

    if silent:
        collectives = _silenced(device_collectives(config.replicas))
        trainer = make_trainer(config, collectives=collectives)
        trainer = across_devices(trainer, run_devices(config), mapping=config.mapping)
    elif config.devices == 1 and config.learners == 1 and mapped:
        trainer = make_trainer(config)
        trainer = across_devices(trainer, run_devices(config), mapping=mapping or config.mapping)
    else:
        trainer = make_mapped_trainer(config)
    return prepare_trainer(trainer, config, iterations).case


def _silenced(collectives: Any) -> Any:
    """Return collectives that return arrays of the right shape without communication."""
    import jax
    import jax.numpy as jnp

    def identity(tree: Any) -> Any:
        return tree

    def gather(tree: Any) -> Any:
        size = collectives.size
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), tree)

    same = dict.fromkeys(("mean", "sum", "max", "all_to_all"), identity)
    return collectives._replace(**same, all_gather=gather)


def times_of_devices(cases: dict[str, Case], effort: Effort) -> dict[str, list[float]]:
    """Time programs that communicate between devices; wait for each call before the next.

    XLA has one thread per virtual CPU device, and a program that waits for a collective blocks its
    thread: two concurrent calls can deadlock.
    """
    import jax

    def blocking(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(run())

    cases = {name: Case(blocking(case.run), case.work) for name, case in cases.items()}
    return alternate(cases, rounds=effort.rounds, seconds=effort.seconds)


def measure_unmapped(plan: Plan) -> list[dict[str, Any]]:
    """Measure the step mapped over one device, relative to the unmapped step."""
    effort, rows = plan.effort, []
    if effort.rounds > _FEW_ROUNDS:
        effort = effort._replace(rounds=_ROUNDS_UNMAPPED)
    for name, config in _settings().items():
        mapped: tuple[Literal["shard_map", "pmap"], ...] = ("shard_map", "pmap")
        cases = {"unmapped": prepare(config, effort.iterations, mapped=False)}
        cases |= {how: prepare(config, effort.iterations, mapping=how) for how in mapped}
        times = times_of_devices(cases, effort)
        for how in mapped:
            rows.append(
                {
                    "setting": name,
                    "mapping": how,
                    "unmapped, us": microseconds(times["unmapped"]),
                    "on one device, us": microseconds(times[how]),
                    "ratio": ratio(times[how], times["unmapped"]),
                }
            )
    return rows


def measure_link(plan: Plan) -> list[dict[str, Any]]:
    """Measure an all-reduce of vectors of several sizes, in a scan as in a run."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from jaxdqn.communication.collectives import DEVICE_AXIS
    from jaxdqn.parallel.data_parallel import state_sharding

    repetitions, rows = 32, []
    for count in plan.devices[1:]:
        layout = state_sharding(jax.devices()[:count])
        cases = {}
        for elements in (1_000, 30_000, 1_000_000):

            def body(vector: Any) -> Any:
                def all_reduce(vector: Any, _: None) -> tuple[Any, None]:
                    return jax.lax.pmean(vector, DEVICE_AXIS) + 1.0, None

                return jax.lax.scan(all_reduce, vector, None, length=repetitions)[0]

            mapped = jax.shard_map(
                body,
                mesh=layout.mesh,
                in_specs=PartitionSpec(DEVICE_AXIS),
                out_specs=PartitionSpec(DEVICE_AXIS),
                check_vma=False,
            )
            vector = jax.device_put(jnp.zeros((count, elements)), layout)
            compiled = jax.jit(mapped).lower(vector).compile()
            cases[f"{4 * elements}"] = Case(partial(compiled, vector), repetitions)
        for size, seconds in times_of_devices(cases, plan.effort).items():
            rows.append({"bytes": int(size), "D": count, "us/all-reduce": microseconds(seconds)})
    return rows


def measure_devices(plan: Plan, *, weak: bool) -> list[dict[str, Any]]:
    """Measure D devices, relative to one device and to D devices without communication."""
    effort, rows = plan.effort, []
    for setting, single in _settings().items():
        cases: dict[str, Case] = {}
        for count in plan.devices:
            config = _over(single, count, weak=weak)
            cases[f"{count}"] = prepare(config, effort.iterations, mapped=False)
            if count > 1:
                cases[f"{count} silent"] = prepare(config, effort.iterations, silent=True)
        times = times_of_devices(cases, effort)
        for count in plan.devices:
            seconds = times[f"{count}"]
            silent = times.get(f"{count} silent", seconds)
            share = ratio(silent, seconds)
            gain = ratio(times["1"], seconds)
            gain = Interval(*(value * (count if weak else 1) for value in gain))
            rows.append(
                {
                    "setting": setting,
                    "D": count,
                    "us/gradient step": microseconds(seconds),
                    "silent, us": microseconds(silent),
                    "parameters": _parameters(single),
                    "rows learned/s over 1" if weak else "speed-up over 1": gain,
                    "efficiency": gain.median / count,
                    "collectives": f"{max(0.0, 1 - share.median):.0%}",
                }
            )
    return rows


def measure_communication(plan: Plan) -> list[dict[str, Any]]:
    """Measure every form of communication on the smallest and the largest number of devices."""
    from jaxdqn.communication.cost import bytes_per_gradient_step

    effort, rows = plan.effort, []
    several = [count for count in plan.devices if count > 1]
    for setting, single in _settings().items():
        for count in sorted({*several[:1], *several[-1:]}):
            by_form = {
                form: dataclasses.replace(_over(single, count, weak=False), **fields)
                for form, fields in _FORMS.items()
            }
            cases = {form: prepare(each, effort.iterations) for form, each in by_form.items()}
            times, size = times_of_devices(cases, effort), _parameters(single)
            float32 = by_form["float32"]
            float32_bytes = bytes_per_gradient_step(float32, size).total
            for form, config in by_form.items():
                sent = bytes_per_gradient_step(config, size).total
                # A step with accumulation learns from more rows, so compare rows learned per
                # second.
                learned = config.rows_per_gradient_step / float32.rows_per_gradient_step
                gain = ratio(times["float32"], times[form])
                rows.append(
                    {
                        "setting": setting,
                        "D": count,
                        "form": form,
                        "bytes sent": f"{sent:,.0f}",
                        "of float32": f"{sent / float32_bytes:.3f}",
                        "us/gradient step": microseconds(times[form]),
                        "speed-up": Interval(*(learned * value for value in gain)),
                    }
                )
    return rows


def measure_model(plan: Plan) -> list[dict[str, Any]]:
    """Measure a wide network on one device, replicated, and divided over a model axis."""
    import jax

    from jaxdqn.parallel.build import make_mapped_trainer
    from jaxdqn.run.device_memory import bytes_per_device

    def parameter_bytes(config: Config) -> int:
        trainer = make_mapped_trainer(config)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        return bytes_per_device(trainer, state).parameters

    single = divisible(configs.CARTPOLE, num_envs=16, batch_size=64, hidden_sizes=(4096, 4096))
    meshes = {"1 x 1": (1, 1), "2 x 1": (2, 1), "1 x 2": (1, 2), "2 x 2": (2, 2)}
    brief = plan.effort._replace(iterations=4)
    meshed = {
        name: dataclasses.replace(single, devices=data * model, model_devices=model)
        for name, (data, model) in meshes.items()
        if data * model <= plan.devices[-1]
    }
    cases = {name: prepare(each, brief.iterations, mapped=False) for name, each in meshed.items()}
    times = times_of_devices(cases, brief)
    return [
        {
            "setting": "CartPole-v1, MLP 4096-4096, B=64",
            "data x model": name,
            "parameter bytes/device": f"{parameter_bytes(config):,}",
            "us/gradient step": microseconds(times[name]),
            "speed-up": ratio(times["1 x 1"], times[name]),
        }
        for name, config in meshed.items()
    ]


def divisible(env: str, **fields: Any) -> Config:
    """Return a configuration with these sizes whose rows divide evenly over eight devices."""
    return configs.sized(env, **{"replay_capacity": 32_768, "warmup_rows": 2_048, **fields})


def _settings() -> dict[str, Config]:
    return {
        "CartPole-v1, E=16, B=128, MLP 120-84": divisible(
            configs.CARTPOLE, num_envs=16, batch_size=128, hidden_sizes=(120, 84)
        ),
        "Breakout-MinAtar, E=16, B=512": divisible(configs.BREAKOUT, num_envs=16, batch_size=512),
    }


def _over(config: Config, devices: int, *, weak: bool) -> Config:
    """Return a configuration over D devices; ``weak`` multiplies the work by D."""
    factor = devices if weak else 1
    return dataclasses.replace(
        config,
        devices=devices,
        num_envs=config.num_envs * factor,
        batch_size=config.batch_size * factor,
        replay_capacity=config.replay_capacity * factor,
        warmup_rows=config.warmup_rows * factor,
        total_rows=config.total_rows * factor,
    )


def parameter_shapes(config: Config) -> list[tuple[int, ...]]:
    """Return the shapes of the parameters of a configuration for one device."""
    import jax

    from jaxdqn.training.trainer import make_trainer

    state = jax.eval_shape(make_trainer(config).init, jax.random.key(0))
    return [leaf.shape for leaf in jax.tree.leaves(state.agent.params)]


def _parameters(config: Config) -> int:
    return sum(map(math.prod, parameter_shapes(config)))


def measure_section(section: Section, plan: Plan) -> list[dict[str, Any]]:
    """Measure a section; the rows have at least the columns of its table."""
    if section == "unmapped":
        return measure_unmapped(plan)
    if section == "link":
        return measure_link(plan)
    if section == "communication":
        return measure_communication(plan)
    if section == "model":
        return measure_model(plan)
    if section == "population":
        return measure_population(configs.matched(), plan)
    return measure_devices(plan, weak=section == "weak")
