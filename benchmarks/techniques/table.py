"""Acceleration techniques: the descriptions of ``table.toml`` with their measurements."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from benchmarks.techniques import devices, family, host, ray, replay, startup, training
from benchmarks.techniques.registry import Result, Technique, register
from benchmarks.timing import Effort

_WORKLOADS = {
    "matched": "complete iterations on CartPole-v1: E=10, K=1, M=1, B=128, MLP 120-84",
    "two-networks": "complete iterations: E=10, K=1, M=1, B=128, MLP 120-84 on CartPole-v1 and the "
    "MinAtar network on Breakout-MinAtar (not with --quick)",
    "devices": "E=16 and one batch of 128 (Breakout-MinAtar: 512, not with --quick) divided over 2 "
    "devices; on CPU these are virtual and their link is memory",
    "ray": "runs of CartPole-v1 with prioritised replay, each in new processes; gradient steps/s "
    "without start and warm-up",
}

MEASUREMENTS: dict[str, Callable[[Effort], list[Result]]] = {
    "device-loop": training.measure_device_loop,
    "donated-buffers": training.measure_donation,
    "vectorised-environments": training.measure_vectorised,
    "cpu-threads": training.measure_cpu_threads,
    "compilation-cache": startup.measure_compilation_cache,
    "random-numbers": training.measure_random_numbers,
    "packed-optimiser": training.measure_packed_optimiser,
    "frame-deduplication": replay.measure_deduplication,
    "bit-packing": replay.measure_bit_packing,
    "muon": family.measure_variant(optimizer="muon"),
    "gradient-clipping": training.measure_clipping,
    "batch-size": training.measure_batch,
    "large-batch-scaled-rate": training.measure_large_batch,
    "replay-ratio": training.measure_replay_ratio,
    "n-step": family.measure_n_step,
    "double": family.measure_variant(double=True),
    "dueling": family.measure_variant(dueling=True),
    "noisy-networks": family.measure_variant(
        noisy=True, epsilon_schedule="constant", epsilon_end=0.0
    ),
    "noisy-product": family.measure_noisy_product,
    "munchausen": family.measure_variant(bootstrap="munchausen"),
    "prioritised-replay": family.measure_variant(replay="prioritized"),
    "distributional": family.measure_distributional,
    "rainbow": family.measure_rainbow,
    "recurrent": family.measure_recurrent,
    "sequence-torso": family.measure_sequence_torso,
    "soft-target": family.measure_variant(target_tau=0.005),
    "layer-norm": family.measure_variant(layer_norm=True),
    "pqn": family.measure_pqn,
    "epsilon-ladder": family.measure_ladder,
    "precision": training.measure_precision,
    "int8-rounding": training.measure_int8_rounding,
    "convolution": training.measure_convolution,
    "torsos": family.measure_torsos,
    "pooled-resets": training.measure_resets,
    "guard": family.measure_guard,
    "diagnostics": family.measure_variant(diagnostics=True),
    "data-parallel": devices.measure_data_parallel,
    "gradient-accumulation": devices.measure_forms({"accumulate 4": {"accumulate": 4}}),
    "averaging": devices.measure_forms(
        {
            "average every 8": {"average_every": 8, "target_period": 96},
            "average every 8, moments": {
                "average_every": 8,
                "average_moments": True,
                "target_period": 96,
            },
        }
    ),
    "compression": devices.measure_forms(
        {
            "bfloat16": {"compression": "bfloat16"},
            "int8": {"compression": "int8"},
            "top-k 1 %": {"compression": "top_k"},
        }
    ),
    "outer-optimiser": devices.measure_forms(
        {
            "average every 8, Nesterov outside": {
                "average_every": 8,
                "outer_optimizer": "nesterov",
                "target_period": 96,
            },
            "average every 96, Nesterov outside": {
                "average_every": 96,
                "outer_optimizer": "nesterov",
                "target_period": 96,
            },
        }
    ),
    "powersgd": devices.measure_forms(
        {f"rank {rank}": {"compression": "powersgd", "powersgd_rank": rank} for rank in (1, 2, 4)}
    ),
    "model-parallel": devices.measure_model_parallel,
    "population": devices.measure_population,
    "host-loop": host.measure_python_loop,
    "host-overlap": host.measure_overlap,
    "host-environments": host.measure_host_environments,
    "host-processes": host.measure_workers,
    "envpool": host.measure_envpool,
    "ray-actors": ray.measure_actors,
    "ray-shards": ray.measure_shards,
    "ape-x": ray.measure_ape_x,
    "parameter-server": ray.measure_parameter_server,
}
"""Measurement of each technique of ``table.toml``."""


def _register_all() -> None:
    text = Path(__file__).with_name("table.toml").read_text()
    for name, described in tomllib.loads(text).items():
        workload = described.pop("measured_on")
        technique = Technique(
            name=name,
            measured_on=_WORKLOADS.get(workload, workload),
            measure=MEASUREMENTS[name],
            **described,
        )
        register(technique)


_register_all()
