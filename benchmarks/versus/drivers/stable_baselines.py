"""Drive Stable-Baselines3 and SBX."""

from __future__ import annotations

import time
from typing import Any

from .channel import (
    Channel,
    import_package,
    jax_device,
    limit_torch_threads,
    torch_device,
)
from .work import (
    BATCH_SIZE,
    CAPACITY,
    ENV_STEPS_PER_GRADIENT_STEP,
    EPSILON,
    HIDDEN_SIZES,
    HOST_CAPACITY,
    HOST_ENVS,
    HOST_HIDDEN_SIZES,
    HOST_WARMUP,
    LEARNING_RATE,
    TARGET_PERIOD,
)


def stable_baselines3(channel: Channel, num_envs: str, gradient_steps: int) -> None:
    """Drive Stable-Baselines3's DQN; each measurement continues ``learn``."""
    package = import_package("stable_baselines3", "stable-baselines3")
    limit_torch_threads()
    _stable_baselines(channel, package.DQN, num_envs, gradient_steps)


def sbx(channel: Channel, num_envs: str, gradient_steps: int) -> None:
    """Drive SBX's DQN; each measurement continues ``learn``."""
    _stable_baselines(channel, import_package("sbx", "sbx-rl").DQN, num_envs, gradient_steps)


def stable_baselines3_host(channel: Channel, cadence: str, gradient_steps: int) -> None:
    """Drive Stable-Baselines3's DQN on the workload with environments on the host."""
    package = import_package("stable_baselines3", "stable-baselines3")
    limit_torch_threads()
    _stable_baselines_host(channel, package.DQN, cadence, gradient_steps)


def sbx_host(channel: Channel, cadence: str, gradient_steps: int) -> None:
    """Drive SBX's DQN on the workload with environments on the host."""
    _stable_baselines_host(channel, import_package("sbx", "sbx-rl").DQN, cadence, gradient_steps)


def _stable_baselines(channel: Channel, algorithm: Any, num_envs: str, gradient_steps: int) -> None:
    envs = int(num_envs or 1)
    warmup = 4 * BATCH_SIZE
    model = algorithm(
        "MlpPolicy",
        _vector_environment(envs),
        learning_rate=LEARNING_RATE,
        buffer_size=CAPACITY,
        batch_size=BATCH_SIZE,
        learning_starts=warmup,
        train_freq=max(1, ENV_STEPS_PER_GRADIENT_STEP // envs),
        gradient_steps=1,
        target_update_interval=TARGET_PERIOD,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        policy_kwargs={"net_arch": HIDDEN_SIZES},
        seed=0,
    )
    _continue_learning(channel, model, warmup, gradient_steps * ENV_STEPS_PER_GRADIENT_STEP)


def _stable_baselines_host(
    channel: Channel, algorithm: Any, cadence: str, gradient_steps: int
) -> None:
    steps, batch_size, updates = (int(number) for number in cadence.split(","))
    model = algorithm(
        "MlpPolicy",
        _vector_environment(HOST_ENVS),
        buffer_size=HOST_CAPACITY,
        batch_size=batch_size,
        learning_starts=HOST_WARMUP,
        train_freq=steps,
        gradient_steps=updates,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        policy_kwargs={"net_arch": HOST_HIDDEN_SIZES},
        seed=0,
    )
    rows = gradient_steps // updates * steps * HOST_ENVS
    _continue_learning(channel, model, HOST_WARMUP, rows)


def _vector_environment(envs: int) -> Any:
    package = import_package("stable_baselines3", "stable-baselines3")
    return package.common.env_util.make_vec_env("CartPole-v1", n_envs=envs, seed=0)


def _continue_learning(channel: Channel, model: Any, warmup: int, env_steps: int) -> None:
    """After the warm-up, train a model for ``env_steps`` at every request and measure the time."""
    start = time.perf_counter()
    model.learn(2 * warmup, log_interval=None)
    # Stable-Baselines3 uses a GPU of PyTorch if there is one; SBX uses that of JAX.
    device = (
        jax_device() if type(model).__module__.startswith("sbx") else torch_device(model.device)
    )
    channel.ready(time.perf_counter() - start, device)
    while channel.wait_for_request():
        before, updates = model.num_timesteps, model._n_updates
        start = time.perf_counter()
        model.learn(env_steps, reset_num_timesteps=False, log_interval=None)
        seconds = time.perf_counter() - start
        channel.send(
            seconds=seconds,
            env_steps=model.num_timesteps - before,
            gradient_steps=model._n_updates - updates,
        )
