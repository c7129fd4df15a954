"""Programs whose launches are counted: presets, larger iterations, and mappings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdqn.config.algorithm_presets import ABLATIONS, ALGORITHMS
from jaxdqn.config.config import Config
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.presets import preset
from jaxdqn.config.task_presets import TASKS

BREAKOUT = "Breakout-MinAtar"


class Case(NamedTuple):
    """Program: the chunk of a configuration."""

    name: str
    preset: str
    fields: dict[str, Any]
    """Fields that differ from the preset."""
    devices: int = 1

    def config(self) -> Config:
        """Return the configuration."""
        fields = {"devices": self.devices, **self.fields}
        return preset(self.preset, **fields)


def _large(num_envs: int = 4096, steps: int = 8) -> dict[str, Any]:
    """Return fields for many environments, and several vector and gradient steps per iteration."""
    per_add = num_envs * steps
    return {
        "num_envs": num_envs,
        "rollout_length": steps,
        "gradient_steps": steps,
        "replay_capacity": 16 * per_add,
        "warmup_rows": 2 * per_add,
        "total_rows": 64 * per_add,
        "log_every": per_add,
        "eval_every": per_add,
    }


_ON_DEVICE = [name for name, config in TASKS.items() if not is_host_env(config.env)]
_ON_BREAKOUT = [name for name in ALGORITHMS if name not in ("recurrent", *ABLATIONS)]

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *(Case(name, name, {}) for name in _ON_DEVICE),
        *(Case(f"{name}-breakout", name, {"env": BREAKOUT}) for name in _ON_BREAKOUT),
        Case("recurrent", "recurrent", {}),
        Case("pqn", "pqn", {}),
        Case("cartpole-large", "cartpole", _large()),
        Case("fast-breakout-large", "fast", {"env": BREAKOUT, **_large()}),
        Case("cartpole-devices-2", "cartpole", {}, devices=2),
        Case("dqn-breakout-devices-2", "dqn", {"env": BREAKOUT}, devices=2),
        Case("cartpole-population-64", "cartpole", {"num_seeds": 64}),
        Case("pqn-breakout-population-8", "pqn", {"env": BREAKOUT, "num_seeds": 8}),
    )
}
"""By name."""

BARS = {
    "cartpole": 45,
    "cartpole-large": 240,
    "dqn-breakout": 60,
    "fast-breakout": 65,
    "fast-breakout-large": 380,
    "rainbow-breakout": 135,
    "pqn-breakout": 2600,
    "memorychain": 700,
}
"""Target for the number of kernels of an iteration, including copies."""


def selected(names: Sequence[str]) -> list[Case]:
    """Return the cases with these names; all cases if ``names`` is empty.

    Raises:
        ValueError: if a name is unknown.
    """
    for name in names:
        if name not in CASES:
            raise ValueError(f"only={name!r}: must be one of {', '.join(CASES)}")
    return [CASES[name] for name in names] if names else list(CASES.values())
