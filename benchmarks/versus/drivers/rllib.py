"""Drive RLlib's DQN."""

from __future__ import annotations

import time
from typing import Any

from .channel import Channel, import_package
from .work import (
    BATCH_SIZE,
    CAPACITY,
    ENV_STEPS_PER_GRADIENT_STEP,
    EPSILON,
    HIDDEN_SIZES,
    LEARNING_RATE,
    TARGET_PERIOD,
)


def rllib(channel: Channel, _: str, gradient_steps: int) -> None:
    """Drive RLlib's DQN (new API stack): 2 environment runners of 5 environments, prioritised
    replay."""
    ray, config = rllib_config()
    algorithm = config.build_algo()

    def totals() -> tuple[int, float]:
        result = algorithm.train()
        rows = result["learners"]["default_policy"]["num_module_steps_trained_lifetime"]
        return result["num_env_steps_sampled_lifetime"], rows / BATCH_SIZE

    started = time.perf_counter()
    while "learners" not in algorithm.train():
        continue
    before = totals()
    # Its learner has no GPU by default.
    channel.ready(time.perf_counter() - started, "cpu")
    while channel.wait_for_request():
        start, (first_steps, first_updates) = time.perf_counter(), before
        while before[1] - first_updates < gradient_steps:
            before = totals()
        channel.send(
            seconds=time.perf_counter() - start,
            env_steps=int(before[0] - first_steps),
            gradient_steps=round(before[1] - first_updates),
        )
    algorithm.stop()
    ray.shutdown()


def rllib_config(seed: int | None = None) -> tuple[Any, Any]:
    """Start Ray; return its module, and RLlib's DQN configuration for the matched workload."""
    ray = import_package("ray", "'ray[rllib]'")
    dqn = import_package("ray.rllib.algorithms.dqn", "'ray[rllib]' torch")
    model = import_package("ray.rllib.core.rl_module.default_model_config", "'ray[rllib]' torch")
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level="ERROR")
    network = model.DefaultModelConfig(
        fcnet_hiddens=HIDDEN_SIZES, fcnet_activation="relu", head_fcnet_hiddens=[]
    )
    config = (
        dqn.DQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=5, rollout_fragment_length=16)
        .training(
            train_batch_size=BATCH_SIZE,
            # Ratio of rows trained on to rows sampled.
            training_intensity=BATCH_SIZE / ENV_STEPS_PER_GRADIENT_STEP,
            num_steps_sampled_before_learning_starts=1_000,
            replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": CAPACITY},
            target_network_update_freq=TARGET_PERIOD,
            lr=LEARNING_RATE,
            epsilon=EPSILON,
            double_q=False,
            dueling=False,
            n_step=1,
        )
        .rl_module(model_config=network)
        .reporting(min_sample_timesteps_per_iteration=100, min_time_s_per_iteration=0)
    )
    return ray, config.debugging(seed=seed)
