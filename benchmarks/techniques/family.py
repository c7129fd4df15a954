"""Measurements of the variants of DQN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import jax

from benchmarks import workloads
from benchmarks.configs import BREAKOUT, CARTPOLE, matched
from benchmarks.techniques.registry import Result, compared, learning_cases, speed_ups
from benchmarks.timing import Case, Effort, alternate, spread
from jaxdqn.config.algorithm_presets import ALGORITHMS
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import preset
from jaxdqn.networks import layers
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Network


def measure_n_step(effort: Effort) -> list[Result]:
    """Measure n-step returns for several N."""
    configs = {f"N={n}": matched(n_step=n) for n in ((1, 3) if effort.quick else (1, 3, 5, 10))}
    return speed_ups(learning_cases(configs, effort), effort, of="gradient steps")


def measure_variant(
    case: str = "variant", against: str = "plain", **fields: Any
) -> Callable[[Effort], list[Result]]:
    """Return a measurement of a variant relative to plain DQN, on two environments."""

    def measure(effort: Effort) -> list[Result]:
        results = []
        for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
            configs = {
                f"{env} {against}": matched(env),
                f"{env} {case}": matched(env, **fields),
            }
            brief = _brief(effort, env)
            results += speed_ups(learning_cases(configs, brief), brief, of="gradient steps")
        return results

    return measure


def _brief(effort: Effort, env: str) -> Effort:
    """Return fewer iterations for the slower environment."""
    return effort if env == CARTPOLE else effort._replace(iterations=max(1, effort.iterations // 5))


def measure_guard(effort: Effort) -> list[Result]:
    """Measure the check of every gradient step relative to no check."""
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        configs = {f"{env} unchecked": matched(env, guard="off"), f"{env} guard": matched(env)}
        brief = _brief(effort, env)
        results += speed_ups(learning_cases(configs, brief), brief, of="gradient steps")
    return results


def measure_rainbow(effort: Effort) -> list[Result]:
    """Measure Rainbow relative to DQN."""
    fields = {**ALGORITHMS["rainbow"], "value_min": 0.0, "value_max": 100.0}
    return measure_variant("Rainbow", "DQN", **fields)(effort)


def measure_recurrent(effort: Effort) -> list[Result]:
    """Measure sequences through an LSTM relative to transitions, in rows learned from."""
    sequences: dict[str, Any] = {"recurrent": "lstm", "sequence_length": 16, "burn_in": 4}
    configs = {
        "transitions": matched(rollout_length=4, batch_size=128),
        "LSTM": matched(rollout_length=4, batch_size=8, **sequences),
    }
    # 8 sequences of 16 rows have the same number of rows as the batch of transitions.
    cases = learning_cases(configs, effort, lambda _: 128)
    return speed_ups(cases, effort, of="rows learned from")


def measure_noisy_product(effort: Effort) -> list[Result]:
    """Measure gradient steps whose noisy layers have one product relative to two."""
    env = CARTPOLE if effort.quick else BREAKOUT
    brief, config = _brief(effort, env), preset("rainbow", env=env)
    # The rows of one example are multiplied twice.
    forms = {"two products": lambda *_: True, "one product": layers.of_one_example}
    cases = {}
    for name, of_one_example in forms.items():
        with patch.object(layers, "of_one_example", of_one_example):
            trainer = make_trainer(config)
            state = jax.jit(trainer.init)(jax.random.key(0))
            parts = workloads.learning_parts(config, trainer, make_replay(config), state)
            cases[name] = workloads.prepare_part(parts["learn"], brief.iterations).case
    return _speed_ups_with_times(cases, brief, of="gradient steps")


def measure_sequence_torso(effort: Effort) -> list[Result]:
    """Measure torso and head outside the scan over time relative to inside."""
    env = CARTPOLE if effort.quick else BREAKOUT
    brief, config = _brief(effort, env), preset("recurrent", env=env)

    def in_the_scan(network: Network) -> Network:
        return network._replace(unroll=None)

    def as_built(network: Network) -> Network:
        return network

    forms = {"in the scan": in_the_scan, "outside the scan": as_built}
    cases = {
        name: workloads.prepare_learning(config, brief.iterations, around_network=form).case
        for name, form in forms.items()
    }
    return _speed_ups_with_times(cases, brief, of="iterations")


def _speed_ups_with_times(cases: Mapping[str, Case], effort: Effort, *, of: str) -> list[Result]:
    """Return the speed-up of two cases, with the time of a unit of work of each in the notes."""
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    texts = [f"{name} {spread([1e3 * value for value in times[name]])} ms" for name in times]
    return compared(times, of=of, notes=dict.fromkeys(times, "; ".join(texts)))


def measure_ladder(effort: Effort) -> list[Result]:
    """Measure a ladder of epsilons relative to a single epsilon."""
    configs = {
        "one epsilon": matched(num_envs=64),
        "ladder": matched(num_envs=64, epsilon_schedule="constant", epsilon_end=0.4,
                          epsilon_ladder=7.0),
    }  # fmt: skip
    return speed_ups(
        learning_cases(configs, effort, lambda config: config.rows_per_iteration),
        effort,
        of="rows acted",
    )


def measure_distributional(effort: Effort) -> list[Result]:
    """Measure C51, QR-DQN and IQN relative to DQN."""
    results = []
    for env in (CARTPOLE,) if effort.quick else (CARTPOLE, BREAKOUT):
        losses = {"C51": "categorical", "QR-DQN": "quantile", "IQN": "implicit_quantile"}
        configs = {f"{env} DQN": matched(env)}
        configs |= {f"{env} {name}": matched(env, loss=loss) for name, loss in losses.items()}
        brief = _brief(effort, env)
        results += speed_ups(learning_cases(configs, brief), brief, of="gradient steps")
    return results


def measure_torsos(effort: Effort) -> list[Result]:
    """Measure the torsos for frames, and parts of BTR's torso, relative to the Nature network."""
    size: dict[str, Any] = {"batch_size": 32, "replay_capacity": 4_000, "warmup_rows": 1_000}
    if effort.quick:
        size["batch_size"] = 4
    frames = matched("pixels:bat-and-ball", frame_stack=4, **size)
    parts: dict[str, dict[str, Any]] = {
        "nature": {},
        "nature, layer norm": {"layer_norm": True},
        "hadamax, layer norm": {"network": "hadamax", "layer_norm": True},
        "impala": {"network": "impala"},
        "impala, pooled to 6": {"network": "impala", "pool_size": 6},
        "impala, spectral norm": {"network": "impala", "spectral_norm": True},
        "impala x 2": {"network": "impala", "torso_width": 2},
        "impala x 2, pooled, spectral norm": {
            "network": "impala", "torso_width": 2, "pool_size": 6, "spectral_norm": True,
        },
    }  # fmt: skip
    names = ("nature", "impala, spectral norm") if effort.quick else parts
    configs = {name: replace(frames, **parts[name]) for name in names}
    brief = effort._replace(iterations=2)
    return speed_ups(learning_cases(configs, brief), brief, of="gradient steps")


def measure_pqn(effort: Effort) -> list[Result]:
    """Measure PQN relative to DQN, with equal rows, gradient steps and batch per iteration."""
    size: dict[str, Any] = {"num_envs": 16, "rollout_length": 8}
    size = size if effort.quick else preset_size("pqn", BREAKOUT)
    passes: dict[str, Any] = {"minibatches": 4 if effort.quick else 32, "epochs": 2}
    pqn = Config(
        env=BREAKOUT, algorithm="pqn", loss="squared", optimizer="radam", clip_norm=10.0,
        layer_norm=True, total_rows=2**29, **size, **passes,
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
    return speed_ups(cases, effort, of="rows acted and learned from twice")


def preset_size(name: str, env: str) -> dict[str, Any]:
    """Return the environments and vector steps per iteration of a preset."""
    config = preset(name, env=env)
    return {"num_envs": config.num_envs, "rollout_length": config.rollout_length}
