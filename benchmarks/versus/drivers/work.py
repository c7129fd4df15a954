"""Sizes of the matched workload."""

from __future__ import annotations

import math
from typing import NamedTuple

ENV_STEPS_PER_GRADIENT_STEP = 10
BATCH_SIZE = 128
CAPACITY = 10_000
LEARNING_RATE = 2.5e-4
TARGET_PERIOD = 500  # environment steps
EPSILON = 0.05
HIDDEN_SIZES = [120, 84]

HOST_ENVS = 8
HOST_CAPACITY = 65_536
HOST_WARMUP = 1_024
HOST_HIDDEN_SIZES = [64, 64]


class Milabench(NamedTuple):
    """Sizes of milabench's workload of purejaxrl's DQN."""

    num_envs: int
    capacity: int
    batch_size: int
    rows: int
    rows_per_gradient_step: int
    rows_per_target: int


def milabench(scale: int) -> Milabench:
    """Return milabench's sizes, divided by ``scale``.

    Its training interval of 10 and target interval of 500 are counted in rows. purejaxrl trains or
    replaces the target when its row count, which is a multiple of the number of environments, is
    also a multiple of the interval: with 128 environments, every 640 and every 16 000 rows.
    """
    num_envs = max(2, 128 // scale)
    return Milabench(
        num_envs=num_envs,
        capacity=max(2_048, 131_072 // scale),
        batch_size=max(32, 65_536 // scale),
        rows=max(10_000, 2_000_000 // scale),
        rows_per_gradient_step=math.lcm(num_envs, 10),
        rows_per_target=math.lcm(num_envs, 500),
    )
