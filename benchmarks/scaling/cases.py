"""What ``benchmarks.scaling`` times: mapped learning and all-reduces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.scaling.effort import Effort
from benchmarks.scaling.population import measure_population
from benchmarks.timing import Case, Interval, alternate, ratio, spread
from benchmarks.workloads import prepare_trainer

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

Section = Literal["unmapped", "link", "strong", "weak", "communication", "model", "population"]
_ROUNDS_UNMAPPED = 21
"""The ratio there is near 1 and wants a narrow interval."""


def prepare(
    config: Config,
    iterations: int,
    *,
    silent: bool = False,
    mapped: bool = True,
    mapping: Literal["shard_map", "pmap"] | None = None,
) -> Case:
    """Compile learning iterations as a run has them; the work is counted in gradient steps.

    Args:
      silent: leave out all that passes between devices, which spoils what is learned.
      mapped: map over the devices even if there is only one.
      mapping: how that one is mapped, instead of as the configuration says.
    """
    from jaxdqn.parallel import across_devices, device_collectives
    from jaxdqn.parallel.build import make_mapped_trainer, run_devices
    from jaxdqn.training.trainer import make_trainer

    if silent:
        collectives = _silenced(device_collectives(config.replicas))
        alone = make_trainer(config, collectives=collectives)
        trainer = across_devices(alone, run_devices(config), mapping=config.mapping)
    elif config.devices == 1 and config.learners == 1 and mapped:
        how = mapping or config.mapping
        trainer = across_devices(make_trainer(config), run_devices(config), mapping=how)
    else:
        trainer = make_mapped_trainer(config)
    return prepare_trainer(trainer, config, iterations).case


def _silenced(collectives: Any) -> Any:
    """Return collectives that compute shapes and places, and send nothing."""
    import jax
    import jax.numpy as jnp

    def same(tree: Any) -> Any:
        return tree

    def gather(tree: Any) -> Any:
        size = collectives.size
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), tree)

    return collectives._replace(mean=same, sum=same, max=same, all_to_all=same, all_gather=gather)


def _times(cases: dict[str, Case], effort: Effort) -> dict[str, list[float]]:
    """Time programs that speak across devices, each call awaited as a run awaits its chunk.

    XLA gives a CPU a thread for each virtual device, and a program waiting for a
    collective holds its thread: two calls in flight can wait for each other for ever.
    """
    import jax

    def awaited(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(run())

    cases = {name: Case(awaited(case.run), case.work) for name, case in cases.items()}
    return alternate(cases, rounds=effort.rounds, seconds=effort.seconds)


def _us(times: Sequence[float]) -> Interval:
    return Interval(*(1e6 * value for value in spread(times)))


def measure_unmapped(effort: Effort) -> list[dict[str, Any]]:
    """Measure the step mapped over one device against the step as it is."""
    rows = []
    for name, config in _settings().items():
        mapped: tuple[Literal["shard_map", "pmap"], ...] = ("shard_map", "pmap")
        cases = {"unmapped": prepare(config, effort.iterations, mapped=False)}
        cases |= {how: prepare(config, effort.iterations, mapping=how) for how in mapped}
        times = _times(
            cases, effort._replace(rounds=_ROUNDS_UNMAPPED if effort.rounds > 3 else effort.rounds)
        )
        for how in mapped:
            rows.append(
                {
                    "setting": name,
                    "mapping": how,
                    "unmapped, us": _us(times["unmapped"]),
                    "on one device, us": _us(times[how]),
                    "ratio": ratio(times[how], times["unmapped"]),
                }
            )
    return rows


def measure_link(effort: Effort) -> list[dict[str, Any]]:
    """Measure an all-reduce of vectors of several sizes, in a scan as a run has it."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from jaxdqn.communication.collectives import DEVICE_AXIS
    from jaxdqn.parallel.data_parallel import state_sharding

    repetitions, rows = 32, []
    for count in effort.devices[1:]:
        layout = state_sharding(jax.devices()[:count])
        cases = {}
        for elements in (1_000, 30_000, 1_000_000):

            def body(vector: Any) -> Any:
                def again(vector: Any, _: None) -> tuple[Any, None]:
                    return jax.lax.pmean(vector, DEVICE_AXIS) + 1.0, None

                return jax.lax.scan(again, vector, None, length=repetitions)[0]

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
        for size, took in _times(cases, effort).items():
            rows.append({"bytes": int(size), "D": count, "us/all-reduce": _us(took)})
    return rows


def measure_devices(effort: Effort, *, weak: bool) -> list[dict[str, Any]]:
    """Measure D devices against one, and against D that send each other nothing."""
    rows = []
    for setting, alone in _settings().items():
        cases: dict[str, Case] = {}
        for count in effort.devices:
            config = _over(alone, count, weak=weak)
            cases[f"{count}"] = prepare(config, effort.iterations, mapped=False)
            if count > 1:
                cases[f"{count} silent"] = prepare(config, effort.iterations, silent=True)
        times = _times(cases, effort)
        for count in effort.devices:
            took = times[f"{count}"]
            share = ratio(times.get(f"{count} silent", took), took)
            gain = ratio(times["1"], took)
            gain = Interval(*(value * (count if weak else 1) for value in gain))
            rows.append(
                {
                    "setting": setting,
                    "D": count,
                    "us/gradient step": _us(took),
                    "silent, us": _us(times.get(f"{count} silent", took)),
                    "parameters": _parameters(alone),
                    "rows learned/s over 1" if weak else "speed-up over 1": gain,
                    "efficiency": gain.median / count,
                    "collectives": f"{max(0.0, 1 - share.median):.0%}",
                }
            )
    return rows


def measure_communication(effort: Effort) -> list[dict[str, Any]]:
    """Measure every form in which replicas speak, on the fewest devices that do and on the most."""
    from jaxdqn.communication.cost import bytes_per_gradient_step

    forms: dict[str, dict[str, Any]] = {
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
    rows, several = [], [count for count in effort.devices if count > 1]
    for setting, alone in _settings().items():
        for count in sorted({*several[:1], *several[-1:]}):
            configs = {
                form: dataclasses.replace(_over(alone, count, weak=False), **fields)
                for form, fields in forms.items()
            }
            cases = {form: prepare(each, effort.iterations) for form, each in configs.items()}
            times, size = _times(cases, effort), _parameters(alone)
            plain = bytes_per_gradient_step(configs["float32"], size).total
            for form, config in configs.items():
                sent = bytes_per_gradient_step(config, size).total
                # Accumulated gradients are of more rows.
                learned = config.rows_per_gradient_step / configs["float32"].rows_per_gradient_step
                faster = Interval(
                    *(learned * value for value in ratio(times["float32"], times[form]))
                )
                rows.append(
                    {
                        "setting": setting,
                        "D": count,
                        "form": form,
                        "bytes sent": f"{sent:,.0f}",
                        "of float32": f"{sent / plain:.3f}",
                        "us/gradient step": _us(times[form]),
                        "speed-up": faster,
                    }
                )
    return rows


def measure_model(effort: Effort) -> list[dict[str, Any]]:
    """Measure a wide network on one device, on data replicas, and divided."""
    import jax

    from jaxdqn.parallel.build import make_mapped_trainer
    from jaxdqn.run.device_memory import bytes_per_device

    def parameter_bytes(config: Config) -> int:
        trainer = make_mapped_trainer(config)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        return bytes_per_device(trainer, state).parameters

    alone = _sized("CartPole-v1", num_envs=16, batch_size=64, hidden_sizes=(4096, 4096))
    meshes = {"1 x 1": (1, 1), "2 x 1": (2, 1), "1 x 2": (1, 2), "2 x 2": (2, 2)}
    brief = effort._replace(iterations=4)
    configs = {
        name: dataclasses.replace(alone, devices=data * model, model_devices=model)
        for name, (data, model) in meshes.items()
        if data * model <= effort.devices[-1]
    }
    cases = {name: prepare(each, brief.iterations, mapped=False) for name, each in configs.items()}
    times = _times(cases, brief)
    return [
        {
            "setting": "CartPole-v1, MLP 4096-4096, B=64",
            "data x model": name,
            "parameter bytes/device": f"{parameter_bytes(config):,}",
            "us/gradient step": _us(times[name]),
            "speed-up": ratio(times["1 x 1"], times[name]),
        }
        for name, config in configs.items()
    ]


def _sized(env: str, **fields: Any) -> Config:
    from benchmarks.workloads import sized

    # Counts that eight devices share.
    return sized(env, **{"replay_capacity": 32_768, "warmup_rows": 2_048, **fields})


def _matched() -> Config:
    from benchmarks.workloads import sized

    return sized("CartPole-v1", num_envs=10, hidden_sizes=(120, 84))


def _settings() -> dict[str, Config]:
    return {
        "CartPole-v1, E=16, B=128, MLP 120-84": _sized(
            "CartPole-v1", num_envs=16, batch_size=128, hidden_sizes=(120, 84)
        ),
        "Breakout-MinAtar, E=16, B=512": _sized("Breakout-MinAtar", num_envs=16, batch_size=512),
    }


def _over(config: Config, devices: int, *, weak: bool) -> Config:
    """Return a configuration over D devices, with D times the work if ``weak``."""
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


def _parameters(config: Config) -> int:
    import jax

    from jaxdqn.training.trainer import make_trainer

    state = jax.eval_shape(make_trainer(config).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(state.agent.params))


def measure_section(section: Section, effort: Effort) -> list[dict[str, Any]]:
    """Measure a section; its rows have the columns of ``HEADERS``."""
    if section == "unmapped":
        return measure_unmapped(effort)
    if section == "link":
        return measure_link(effort)
    if section == "communication":
        return measure_communication(effort)
    if section == "model":
        return measure_model(effort)
    if section == "population":
        return measure_population(_matched(), effort)
    return measure_devices(effort, weak=section == "weak")
