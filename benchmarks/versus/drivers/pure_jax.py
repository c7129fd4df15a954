"""Drive libraries whose training is one pure function: purejaxrl, purejaxql, rejax."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from .channel import Channel, Missing, existing_file, import_package, jax_device
from .work import (
    BATCH_SIZE,
    CAPACITY,
    ENV_STEPS_PER_GRADIENT_STEP,
    EPSILON,
    HIDDEN_SIZES,
    LEARNING_RATE,
    TARGET_PERIOD,
)

_SOURCES = {
    "purejaxrl": "https://github.com/luchris429/purejaxrl (purejaxrl/dqn.py)",
    "purejaxql": "https://github.com/mttga/purejaxql (purejaxql/pqn_minatar.py)",
}


def purejaxrl(channel: Channel, path: str, gradient_steps: int) -> None:
    """Drive purejaxrl's ``make_train`` (10 environments); each measurement is a complete run."""
    module = load_file(path, "purejaxrl", {"wandb": types.ModuleType("wandb")})
    env_steps = gradient_steps * ENV_STEPS_PER_GRADIENT_STEP
    config = {
        "NUM_ENVS": 10,
        "BUFFER_SIZE": CAPACITY,
        "BUFFER_BATCH_SIZE": BATCH_SIZE,
        "TOTAL_TIMESTEPS": env_steps,
        "EPSILON_START": EPSILON,
        "EPSILON_FINISH": EPSILON,
        "EPSILON_ANNEAL_TIME": 25e4,
        "TARGET_UPDATE_INTERVAL": TARGET_PERIOD,
        "LR": LEARNING_RATE,
        # Learning starts when the buffer holds a batch.
        "LEARNING_STARTS": 0,
        "TRAINING_INTERVAL": ENV_STEPS_PER_GRADIENT_STEP,
        "LR_LINEAR_DECAY": False,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": "CartPole-v1",
        "WANDB_MODE": "disabled",
    }
    complete_runs(channel, module.make_train(config), env_steps, "updates")


def purejaxql(channel: Channel, path: str, gradient_steps: int) -> None:
    """Drive purejaxql's ``make_train`` (pqn_minatar.py); each measurement is a complete run."""
    hydra: Any = types.ModuleType("hydra")
    hydra.main = lambda **_: lambda function: function
    omegaconf: Any = types.ModuleType("omegaconf")
    omegaconf.OmegaConf = None
    replacements = {"hydra": hydra, "omegaconf": omegaconf, "wandb": types.ModuleType("wandb")}
    module = load_file(path, "purejaxql", replacements)
    minibatches, epochs, num_envs, steps = 32, 2, 128, 32
    env_steps = gradient_steps // (minibatches * epochs) * num_envs * steps
    config = {
        "TOTAL_TIMESTEPS": env_steps,
        "TOTAL_TIMESTEPS_DECAY": 10_000_000,
        "NUM_ENVS": num_envs,
        "NUM_STEPS": steps,
        "EPS_START": EPSILON,
        "EPS_FINISH": EPSILON,
        "EPS_DECAY": 0.1,
        "NUM_MINIBATCHES": minibatches,
        "NUM_EPOCHS": epochs,
        "NORM_TYPE": "layer_norm",
        "LR": 0.0005,
        "MAX_GRAD_NORM": 10,
        "LR_LINEAR_DECAY": True,
        "GAMMA": 0.99,
        "LAMBDA": 0.65,
        "ENV_NAME": "Breakout-MinAtar",
        "TEST_DURING_TRAINING": False,
        "WANDB_MODE": "disabled",
    }
    complete_runs(channel, module.make_train(config), env_steps, "grad_steps")


def rejax(channel: Channel, _: str, gradient_steps: int) -> None:
    """Drive rejax's ``train`` (10 environments); each measurement is a complete run."""
    package = import_package("rejax", "rejax==0.1.3")
    networks = import_package("rejax.networks", "rejax==0.1.3")
    relu = import_package("flax.linen", "flax").relu
    env_steps = gradient_steps * ENV_STEPS_PER_GRADIENT_STEP
    algorithm = package.get_algo("dqn").create(
        env="CartPole-v1",
        num_envs=ENV_STEPS_PER_GRADIENT_STEP,
        total_timesteps=env_steps,
        eval_freq=env_steps,
        skip_initial_evaluation=True,
        buffer_size=CAPACITY,
        batch_size=BATCH_SIZE,
        fill_buffer=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        target_update_freq=TARGET_PERIOD,
        eps_start=EPSILON,
        eps_end=EPSILON,
        ddqn=False,
    )
    agent = networks.EpsilonGreedyPolicy(networks.DiscreteQNetwork)(
        hidden_layer_sizes=tuple(HIDDEN_SIZES), action_dim=2, activation=relu
    )
    # Training only, without the evaluation at the end of a run.
    algorithm = algorithm.replace(agent=agent, eval_callback=lambda algorithm, state, key: ())

    def train(key: Any) -> Any:
        state, _ = algorithm.train(key)
        return {"metrics": {"updates": state.q_ts.step[None]}, "params": state.q_ts.params}

    complete_runs(channel, train, env_steps, "updates")


def complete_runs(
    channel: Channel, train: Callable[..., Any], env_steps: int, counter: str
) -> None:
    """Measure a pure function ``train(key)`` of a complete run; each run has a new seed.

    ``counter`` is the name of the metric with the number of gradient steps of a run.
    """
    jax = import_package("jax", "jax")
    start = time.perf_counter()
    run = jax.jit(train).lower(jax.random.PRNGKey(0)).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(run(jax.random.PRNGKey(0)))
    channel.ready(compile_seconds, jax_device())
    seed = 1
    while channel.wait_for_request():
        key = jax.block_until_ready(jax.random.PRNGKey(seed))
        start = time.perf_counter()
        out = jax.block_until_ready(run(key))
        seconds = time.perf_counter() - start
        updates = int(out["metrics"][counter][-1])
        channel.send(seconds=seconds, env_steps=env_steps, gradient_steps=updates)
        seed += 1


def load_file(path: str, name: str, replacements: dict[str, Any]) -> Any:
    file = existing_file(path, _SOURCES[name])
    jax = import_package("jax", "jax")
    for package in ("gymnax", "flashbax") if name == "purejaxrl" else ("gymnax",):
        if importlib.util.find_spec(package) is None:
            raise Missing(package, f"pip install {package}")
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map
    sys.modules.update(replacements)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
