"""Drive TorchRL's DQN, assembled from its parts as in its example for CartPole."""

from __future__ import annotations

import time
from typing import Any

from .channel import Channel, import_package, limit_torch_threads
from .work import (
    BATCH_SIZE,
    CAPACITY,
    ENV_STEPS_PER_GRADIENT_STEP,
    EPSILON,
    HIDDEN_SIZES,
    LEARNING_RATE,
    TARGET_PERIOD,
)


def torchrl(channel: Channel, _: str, gradient_steps: int) -> None:
    """Drive a collector of one environment, a replay and ``DQNLoss``."""
    torch = import_package("torch", "torch")
    limit_torch_threads()
    start = time.perf_counter()
    learn = _make_learn(torch)
    learn(BATCH_SIZE // ENV_STEPS_PER_GRADIENT_STEP + 2)
    # Its parts are on the CPU unless a device is given.
    channel.ready(time.perf_counter() - start, "cpu")
    while channel.wait_for_request():
        start = time.perf_counter()
        learn(gradient_steps)
        channel.send(
            seconds=time.perf_counter() - start,
            env_steps=gradient_steps * ENV_STEPS_PER_GRADIENT_STEP,
            gradient_steps=gradient_steps,
        )


def _make_learn(torch: Any) -> Any:
    """Return ``learn(gradient_steps)``, which collects rows and takes gradient steps."""
    nn = import_package("tensordict.nn", "torchrl")
    collectors = import_package("torchrl.collectors", "torchrl")
    data = import_package("torchrl.data", "torchrl")
    envs = import_package("torchrl.envs", "torchrl")
    modules = import_package("torchrl.modules", "torchrl")
    objectives = import_package("torchrl.objectives", "torchrl")

    env = envs.GymEnv("CartPole-v1", categorical_action_encoding=True)
    network = modules.MLP(
        in_features=4, out_features=2, num_cells=list(HIDDEN_SIZES), activation_class=torch.nn.ReLU
    )
    actor = modules.QValueActor(network, spec=env.action_spec, in_keys=["observation"])
    explore = modules.EGreedyModule(env.action_spec, eps_init=EPSILON, eps_end=EPSILON)
    policy = nn.TensorDictSequential(actor, explore)
    # Single-process collector; older releases call it SyncDataCollector.
    make = getattr(collectors, "Collector", None) or collectors.SyncDataCollector
    collector = make(env, policy, frames_per_batch=ENV_STEPS_PER_GRADIENT_STEP, total_frames=-1)
    replay = data.TensorDictReplayBuffer(
        storage=data.LazyTensorStorage(CAPACITY), batch_size=BATCH_SIZE
    )
    loss = objectives.DQNLoss(
        actor, delay_value=True, loss_function="l2", action_space=env.action_spec
    )
    loss.make_value_estimator(gamma=0.99)
    target = objectives.HardUpdate(
        loss, value_network_update_interval=TARGET_PERIOD // ENV_STEPS_PER_GRADIENT_STEP
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=LEARNING_RATE)
    rows = iter(collector)

    def learn(gradient_steps: int) -> None:
        for _ in range(gradient_steps):
            replay.extend(next(rows).reshape(-1))
            if len(replay) < BATCH_SIZE:
                continue
            error = loss(replay.sample())["loss"]
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            target.step()

    return learn
