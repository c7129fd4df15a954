"""Drive Stable-Baselines3 on CartPole-v1 with the settings of RL Baselines3 Zoo.

It trains for four times their budget.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .at_best import EPISODES, ROWS_PER_EVALUATION, Learner, Prepared, play
from .channel import import_package

ZOO: dict[str, Any] = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}
ZOO_ROWS, ZOO_EXPLORATION_ROWS = 200_000, 8_000


def stable_baselines3(argument: str) -> Prepared:
    """Prepare Stable-Baselines3's DQN with the settings of RL Baselines3 Zoo."""
    package = import_package("stable_baselines3", "stable-baselines3")
    torch, gymnasium = import_package("torch", "torch"), import_package("gymnasium", "gymnasium")
    torch.set_num_threads(1)  # faster than several for networks of this size
    evaluate_in = gymnasium.make_vec("CartPole-v1", num_envs=EPISODES)

    def start(seed: int) -> Learner:
        model = package.DQN(
            "MlpPolicy",
            "CartPole-v1",
            **ZOO,
            exploration_fraction=ZOO_EXPLORATION_ROWS / ZOO_ROWS,
            seed=seed,
            device="cpu",
        )
        model._total_timesteps = ZOO_ROWS
        blocks = _blocks(model)

        def greedy(obs: Any) -> Any:
            with torch.no_grad():
                return model.q_net(torch.as_tensor(obs)).argmax(1).numpy()

        return Learner(lambda: next(blocks), lambda key: play(evaluate_in, greedy, key), ZOO_ROWS)

    learner = start(0)
    begin = time.perf_counter()
    learner.advance()
    learner.evaluate(0)
    return time.perf_counter() - begin, {**ZOO, "rows": ZOO_ROWS}, start


def _blocks(model: Any) -> Iterator[int]:
    """Train one ``learn`` of the complete budget; yield the rows at each evaluation.

    A thread would be needed to pause ``learn``, so its two phases are called as it calls them.
    """
    total, callback = model._setup_learn(ZOO_ROWS, None, True, "run", False)
    counted = 0
    while model.num_timesteps < total:
        model.collect_rollouts(
            model.env,
            train_freq=model.train_freq,
            action_noise=model.action_noise,
            callback=callback,
            learning_starts=model.learning_starts,
            replay_buffer=model.replay_buffer,
            log_interval=None,
        )
        if model.num_timesteps > model.learning_starts:
            model.train(batch_size=model.batch_size, gradient_steps=model.gradient_steps)
        if model.num_timesteps - counted >= ROWS_PER_EVALUATION:
            counted = model.num_timesteps
            yield counted
    yield model.num_timesteps
