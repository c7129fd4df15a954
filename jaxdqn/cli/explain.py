"""Describe a run without running it: ``jaxdqn explain [PRESET] [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxdqn.cli.backend import start_backend
from jaxdqn.config.config import Config
from jaxdqn.export.policy import observation_shape
from jaxdqn.monitoring.terminal import planned_rows, seeds_of
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.replay.memory import devices_sharing_memory, free_bytes
from jaxdqn.run.device_memory import DeviceBytes, bytes_per_device, bytes_sent, working_bytes
from jaxdqn.run.holding import unholdable
from jaxdqn.run.memory_needs import memory_needs
from jaxdqn.run.summary import algorithm, mapping_of
from jaxdqn.storage.parts import resolve_parts
from jaxdqn.training.resets import choose_reset
from jaxdqn.training.vector_trainer import VectorTrainer, acting_text
from jaxdqn.types import EnvSpec, Trainer, TrainState

_HELP = """usage: jaxdqn explain [PRESET] [flags of jaxdqn run]

Print the algorithm, shapes, bytes per device, cadence, schedules and evaluations of a run, as
`jaxdqn run` with the same arguments would run it. Nothing is trained, allocated or written.

jaxdqn run --help lists the presets and the flags."""


def explain(config: Config, preset: str, parts: Mapping[str, Any] | None = None) -> str:
    """Return shapes, bytes per device, cadence and schedules as text; allocate nothing.

    Args:
        config: configuration of the run.
        preset: name of the preset, displayed unchanged.
        parts: custom parts by name, as objects or references.

    Raises:
        ValueError: if the configuration is invalid, or a reference cannot be resolved.
    """
    start_backend()
    trainer = make_mapped_trainer(config, **resolve_parts(parts or {}).objects)
    state = jax.eval_shape(trainer.init, learner_keys(config).train)
    spec = trainer.environment.spec
    taken = bytes_per_device(trainer, state)
    sections = {
        "run": _run(config, preset, trainer),
        "shapes, on each device": _shapes(config, spec, taken),
        "bytes, on each device": _bytes(config, trainer, state, taken),
        "cadence": _cadence(config),
        "schedules": _schedules(config),
        "evaluation": _evaluation(config),
    }
    return "\n\n".join(_section(title, lines) for title, lines in sections.items())


def _run(config: Config, preset: str, trainer: Trainer | VectorTrainer) -> dict[str, Any]:
    spec, on_host = trainer.environment.spec, isinstance(trainer, VectorTrainer)
    processes = f", in {config.num_envs} processes" if config.env_processes else ""
    if config.restart_envs:
        processes += f", started again up to {config.restart_envs} times after a failure"
    limit = spec.max_episode_steps
    episodes = "without a time limit" if limit is None else f"of at most {limit} steps"
    return {
        "preset": preset,
        "algorithm": algorithm(config),
        "environment": f"{environment_text(spec, config.sticky_actions)}, {spec.num_actions} "
        f"actions, episodes {episodes}",
        **(
            {"on the host": f"acts {acting_text(config)}{processes}"}
            if on_host
            else {"resets": _resets(config, trainer)}
        ),
        "seed": seeds_of(config),
        "devices": f"{config.devices} x {jax.devices()[0].device_kind}, "
        f"mapping: {mapping_of(config)}",
    }


def _resets(config: Config, trainer: Trainer | VectorTrainer) -> str:
    """Describe the resets of environments on the device, and why they were chosen."""
    choice = choose_reset(config, trainer.environment)
    pool = "" if choice.reset == "every-step" else f", {config.resets_in_pool} in bulk"
    return f"{choice.reset}{pool}: {choice.reason}"


def environment_text(spec: EnvSpec, sticky_actions: float = 0.0) -> str:
    """Return the name of an environment, with its arguments and sticky actions if it has any."""
    sticky = [f"sticky_actions={sticky_actions:g}"] if sticky_actions else []
    properties = ", ".join([*spec.arguments, *sticky])
    return f"{spec.name} ({properties})" if properties else spec.name


def _shapes(config: Config, spec: EnvSpec, taken: DeviceBytes) -> dict[str, Any]:
    learners = config.learners // config.devices if config.learners > 1 else 1
    ring = f"[{config.replay_rows}, {config.envs_per_device}]"
    count = taken.parameters // 4 // learners  # float32, whatever the compute precision
    return {
        **({"learners (P/D)": learners} if config.learners > 1 else {}),
        "observation": f"{spec.obs_dtype}{list(observation_shape(config, spec))}",
        "acting (E)": config.envs_per_device,
        "replay (T, E)": "none" if config.algorithm == "pqn" else ring,
        "batch (B)": _batch(config),
        "parameters": f"{count:,}" + (" of each learner" if config.learners > 1 else ""),
    }


def _bytes(
    config: Config, trainer: Trainer, state: TrainState, taken: DeviceBytes
) -> dict[str, str]:
    working = working_bytes(config, taken.replay)
    needed = sum(need.bytes for need in memory_needs(config, trainer, state, saves=True))
    sizes = {
        "replay": taken.replay,
        # A population trained in turn works on a copy of one learner's replay.
        **({"one learner's copy": working - taken.replay} if working > taken.replay else {}),
        "parameters": taken.parameters,
        "target and optimiser": taken.target + taken.optimizer,
        "environments": taken.environments,
        "complete state": taken.state,
        "held at once": needed,
    }
    return {
        **{name: f"{size:,}" for name, size in sizes.items()},
        "free": _free(needed, config.devices, jax.devices()[0]),
        **_sent(bytes_sent(config, state)),
    }


def _batch(config: Config) -> str:
    if config.algorithm == "pqn":
        return f"{config.batch_per_device}, {config.minibatches} in each of {config.epochs} passes"
    batch = f"{config.batch_per_device} x {config.accumulate} minibatches"
    if config.recurrent == "none":
        return batch
    return (
        f"{batch} of sequences: {config.burn_in} rows of burn-in, {config.sequence_length} rows to "
        f"learn from, {config.n_step} to bootstrap from; a start every {config.start_stride} rows"
    )


def _free(needed: int, devices: int, device: Any) -> str:
    """Return the free bytes as text, with a remark if the run needs more."""
    free, sharing = free_bytes(device), devices_sharing_memory(devices, device)
    shared = f", shared by the {sharing} devices" if sharing > 1 else ""
    return f"{free:,}{shared}" + (", too few" if needed * sharing > free else "")


def _sent(size: float | None) -> dict[str, str]:
    """Return the line on the bytes that replicas send; empty for a single replica."""
    return {} if size is None else {"sent, each step": f"{size:,.0f} by each replica"}


def _cadence(config: Config) -> dict[str, Any]:
    rows, steps = config.rows_per_iteration, config.gradient_steps_per_iteration
    learned = steps * config.rows_per_gradient_step
    return {
        "an iteration": f"{rows} rows ({config.num_envs} environments x {config.rollout_length} "
        f"steps), then {steps} gradient steps of {config.rows_per_gradient_step} rows",
        "replay ratio": f"{learned / rows:g} rows sampled per row collected",
        "warm-up": f"{config.warmup_iterations} iterations, "
        f"{config.warmup_iterations * rows:,} rows of random actions",
        "chunks": f"{config.num_chunks} of {config.iterations_per_chunk} iterations, "
        f"{config.iterations_per_chunk * rows:,} rows",
        "total": f"{planned_rows(config):,} rows (environment steps and resets), "
        f"{config.total_gradient_steps * config.learners:,} gradient steps",
    }


def _schedules(config: Config) -> dict[str, Any]:
    if config.epsilon_schedule == "constant":
        epsilon = f"{config.epsilon_end:g}"
    else:
        epsilon = (
            f"{config.epsilon_start:g} to {config.epsilon_end:g}, {config.epsilon_schedule}, "
            f"over {config.epsilon_decay_rows:,} rows after the warm-up"
        )
    if config.epsilon_ladder is not None:
        epsilon += f", to the power of 1 + {config.epsilon_ladder:g} i/(E-1) in environment i"
    if config.exploration == "boltzmann":
        epsilon = f"softmax at temperature {config.temperature:g}, and epsilon {epsilon}"
    if config.noisy:
        epsilon += f", and parameter noise, initially {config.noisy_sigma:g}"
    rate = f"{config.learning_rate:g}, {config.learning_rate_schedule}"
    if config.learning_rate_schedule != "constant":
        rate += f" to 0 over {config.gradient_steps_of_schedules:,} gradient steps"
    if config.algorithm == "pqn":
        target = "none"
    elif config.target_tau is None:
        target = f"replaced every {config.target_period:,} gradient steps"
    else:
        target = f"Polyak step of {config.target_tau:g} every gradient step"
    return {
        "exploration": epsilon,
        "learning rate": f"{rate} ({config.optimizer})",
        "target network": target,
        **_priorities(config),
        **({"lambda": f"{config.trace_decay:g}"} if config.algorithm == "pqn" else {}),
    }


def _priorities(config: Config) -> dict[str, str]:
    if config.replay != "prioritized":
        return {}
    return {
        "priorities": f"|TD error|^{config.priority_exponent:g}, importance exponent "
        f"{config.importance_exponent:g} to 1 over {config.rows_of_schedules:,} rows"
    }


def _evaluation(config: Config) -> dict[str, Any]:
    rows = config.chunks_per_evaluation * config.iterations_per_chunk * config.rows_per_iteration
    solved = "no criterion"
    if config.solve_return is not None:
        solved = f"at return {config.solve_return:g}, confirmed by a second evaluation"
    ends = {
        "never": "",
        "solved": "; then the run ends",
        "held": "; the run ends when ten evaluations in a row reach it",
    }
    reason = unholdable(config)
    solved += ends[config.stop_when] if reason is None else f"; {reason}"
    return {
        "every": f"{config.chunks_per_evaluation} chunks, {rows:,} rows, and at the end",
        "episodes": f"{config.eval_episodes}, "
        + (f"{config.eval_epsilon:g}-greedy" if config.eval_epsilon else "greedy"),
        "solved": solved,
    }


def _section(title: str, lines: dict[str, Any]) -> str:
    return "\n".join([title, *(f"  {name:<22}{value}" for name, value in lines.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``jaxdqn run ... --explain`` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(_HELP)
        return 0
    from jaxdqn.cli.run import main as run

    return run([*arguments, "--explain"])


if __name__ == "__main__":
    sys.exit(main())
