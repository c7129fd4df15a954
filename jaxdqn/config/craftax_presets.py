"""Settings of the algorithms on Craftax with symbolic observations. Imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxdqn.config.config import Config


def is_craftax(env: Any) -> bool:
    """Return whether ``env`` is Craftax or Craftax-Classic with symbolic observations."""
    return isinstance(env, str) and env.startswith("craftax:") and "-Symbolic-" in env


# Configuration of the authors of PQN (Gallici et al. 2024, pqn_craftax.yaml of purejaxql), except
# the input, which they normalise by the statistics of the batch and which is normalised here by
# those of all rows. The target is of one step: trace_decay is 0.
_SHARED: dict[str, Any] = {
    "num_envs": 1_024,
    "gamma": 0.99,
    "learning_rate": 1e-4,
    "clip_norm": 1.0,
    "hidden_sizes": (1_024, 1_024, 1_024, 1_024),
    "normalize_observations": True,
    "total_rows": 1_000_000_000,
    "epsilon_start": 0.1,
    "epsilon_end": 0.005,
    "epsilon_decay_rows": 200_000_000,
    "log_every": 1_024_000,
    "eval_every": 102_400_000,
}
PQN_CRAFTAX = {
    **_SHARED,
    "rollout_length": 1,
    "minibatches": 1,
    "epochs": 1,
    "trace_decay": 0.0,
}
"""Settings of PQN."""

# Environments, gradient steps, batch, network, exploration and budget of PQN, so that an iteration
# differs by the replay and the target network alone. The replay is what fits a small accelerator: a
# row of Craftax has 33 kB, so 102 400 rows take 3.4 GB. Not tuned.
CRAFTAX = Config(
    **_SHARED,
    env="craftax:Craftax-Symbolic-v1",
    batch_size=1_024,
    loss="squared",
    learning_rate_schedule="linear",
    layer_norm=True,
    target_period=250,
    replay_capacity=102_400,
    warmup_rows=20_480,
)
"""Settings of the algorithms with a replay."""

FAST_CRAFTAX: dict[str, Any] = {"n_step": 3, "double": True}
"""Fields that ``fast`` changes on Craftax, as on MinAtar."""
