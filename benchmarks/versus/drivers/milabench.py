"""Drive purejaxrl's DQN on milabench's workload."""

from __future__ import annotations

import json
import types
from typing import Any

from .channel import Channel
from .pure_jax import complete_runs, load_file
from .work import EPSILON, LEARNING_RATE, milabench


def purejaxrl(channel: Channel, argument: str, gradient_steps: int) -> None:
    """Drive ``make_train``; each measurement is a complete run.

    ``argument`` is a JSON object: ``file``, ``network`` (``flat`` or ``convolution``), ``scale``.
    """
    given = json.loads(argument)
    module = load_file(given["file"], "purejaxrl", {"wandb": types.ModuleType("wandb")})
    work = milabench(given["scale"])
    if given["network"] == "convolution":
        module.QNetwork = _convolution_network()
    config = {
        "NUM_ENVS": work.num_envs,
        "BUFFER_SIZE": work.capacity,
        "BUFFER_BATCH_SIZE": work.batch_size,
        "TOTAL_TIMESTEPS": work.rows,
        "EPSILON_START": EPSILON,
        "EPSILON_FINISH": EPSILON,
        "EPSILON_ANNEAL_TIME": 25e4,
        "TARGET_UPDATE_INTERVAL": 500,
        "LR": LEARNING_RATE,
        "LEARNING_STARTS": 0,
        "TRAINING_INTERVAL": 10,
        "LR_LINEAR_DECAY": False,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": "SpaceInvaders-MinAtar",
        "WANDB_MODE": "disabled",
    }
    complete_runs(channel, module.make_train(config), work.rows, "updates")


def _convolution_network() -> Any:
    """Return MinAtar's network with purejaxrl's interface, which receives flat observations."""
    import flax.linen as nn
    import jax.numpy as jnp

    class QNetwork(nn.Module):
        action_dim: int

        @nn.compact
        def __call__(self, obs: Any) -> Any:
            picture = jnp.reshape(obs, (*obs.shape[:-1], 10, 10, -1)).astype(jnp.float32)
            hidden = nn.relu(nn.Conv(16, (3, 3), padding="VALID")(picture))
            hidden = nn.relu(nn.Dense(128)(hidden.reshape(*hidden.shape[:-3], -1)))
            return nn.Dense(self.action_dim)(hidden)

    return QNetwork
