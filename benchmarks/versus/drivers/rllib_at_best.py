"""Train RLlib on CartPole-v1 with the settings that every library gets at equal work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .at_best import EPISODES, ROWS_PER_EVALUATION, Learner, Prepared, play
from .channel import import_package
from .rllib import rllib_config

RLLIB_ROWS = 500_000


def rllib(argument: str) -> Prepared:
    """Prepare RLlib's DQN with 2 environment runners and the settings of equal work."""
    torch = import_package("torch", "'ray[rllib]' torch")
    gymnasium = import_package("gymnasium", "gymnasium")
    evaluate_in = gymnasium.make_vec("CartPole-v1", num_envs=EPISODES)
    running: list[Any] = []

    def start(seed: int) -> Learner:
        while running:  # the previous runners would compete with the new ones for CPU time
            running.pop().stop()
        algorithm = rllib_config(seed)[1].build_algo()
        running.append(algorithm)
        return rllib_learner(algorithm, torch, lambda greedy, key: play(evaluate_in, greedy, key))

    begin = time.perf_counter()
    learner = start(0)
    learner.evaluate(0)
    return time.perf_counter() - begin, {"rows": RLLIB_ROWS}, start


def rllib_learner(
    algorithm: Any, torch: Any, play: Callable[[Callable[[Any], Any], int], float]
) -> Learner:
    """Wrap an RLlib algorithm as a ``Learner``.

    Args:
        algorithm: RLlib algorithm, not yet trained.
        torch: the imported ``torch`` module.
        play: ``play(greedy, key)``, the mean return of greedy episodes.
    """
    rows = 0

    def advance() -> int:
        nonlocal rows
        until = rows + ROWS_PER_EVALUATION
        while rows < until:
            rows = int(algorithm.train()["num_env_steps_sampled_lifetime"])
        return rows

    def evaluate(key: int) -> float:
        # The weights of the local environment runner may lag behind the learner's.
        module, policy = algorithm.get_module(), "default_policy"
        module.set_state(algorithm.learner_group.get_weights()[policy])

        def greedy(obs: Any) -> Any:
            with torch.no_grad():
                return module.forward_inference({"obs": torch.as_tensor(obs)})["actions"].numpy()

        return play(greedy, key)

    return Learner(advance, evaluate, RLLIB_ROWS)
