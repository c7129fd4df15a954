"""Drive purejaxrl and purejaxql on CartPole-v1 with the settings of their repositories."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from typing import Any

from .at_best import EPISODES, LIMIT, ROWS_PER_EVALUATION, Learner, Prepared
from .pure_jax import load_file

PUREJAXRL: dict[str, Any] = {
    "NUM_ENVS": 10,
    "BUFFER_SIZE": 10_000,
    "BUFFER_BATCH_SIZE": 128,
    "TOTAL_TIMESTEPS": 500_000,
    "EPSILON_START": 1.0,
    "EPSILON_FINISH": 0.05,
    "EPSILON_ANNEAL_TIME": 25e4,
    "TARGET_UPDATE_INTERVAL": 500,
    "LR": 2.5e-4,
    "LEARNING_STARTS": 10_000,
    "TRAINING_INTERVAL": 10,
    "LR_LINEAR_DECAY": False,
    "GAMMA": 0.99,
    "TAU": 1.0,
    "ENV_NAME": "CartPole-v1",
    "WANDB_MODE": "disabled",
}
PUREJAXQL: dict[str, Any] = {
    "TOTAL_TIMESTEPS": 500_000,
    "TOTAL_TIMESTEPS_DECAY": 500_000,
    "NUM_ENVS": 32,
    "NUM_STEPS": 64,
    "EPS_START": 1.0,
    "EPS_FINISH": 0.2,
    "EPS_DECAY": 0.2,
    "NUM_MINIBATCHES": 16,
    "NUM_EPOCHS": 4,
    "NORM_INPUT": False,
    "HIDDEN_SIZE": 256,
    "NUM_LAYERS": 2,
    "NORM_TYPE": "layer_norm",
    "LR": 1e-4,
    "MAX_GRAD_NORM": 10,
    "LR_LINEAR_DECAY": True,
    "REW_SCALE": 0.1,
    "GAMMA": 0.99,
    "LAMBDA": 0.95,
    "ENV_NAME": "CartPole-v1",
    "ENV_KWARGS": {},
    "TEST_DURING_TRAINING": False,
    "WANDB_MODE": "disabled",
}


def purejaxrl(path: str) -> Prepared:
    """Prepare purejaxrl's DQN (dqn.py)."""
    module = load_file(path, "purejaxrl", {"wandb": types.ModuleType("wandb")})
    config = dict(PUREJAXRL)
    network = module.QNetwork(action_dim=2)

    def q_values(state: Any, obs: Any) -> Any:
        return network.apply(state[0].params, obs)

    return _scanned(module.make_train(config), PUREJAXRL, config["NUM_ENVS"], q_values)


def purejaxql(path: str) -> Prepared:
    """Prepare purejaxql's PQN (pqn_gymnax.py)."""
    replacements: dict[str, Any] = {
        name: types.ModuleType(name) for name in ("hydra", "omegaconf", "wandb", "safetensors")
    }
    replacements["hydra"].main = lambda **_: lambda function: function
    replacements["omegaconf"].OmegaConf = None
    replacements["safetensors.flax"] = types.ModuleType("safetensors.flax")
    replacements["safetensors.flax"].load_file = replacements["safetensors.flax"].save_file = None
    module = load_file(path, "purejaxql", replacements)
    config = dict(PUREJAXQL)
    network = module.QNetwork(action_dim=2, hidden_size=256, num_layers=2, norm_type="layer_norm")

    def q_values(state: Any, obs: Any) -> Any:
        variables = {"params": state[0].params, "batch_stats": state[0].batch_stats}
        return network.apply(variables, obs, train=False)

    rows = config["NUM_ENVS"] * config["NUM_STEPS"]
    return _scanned(module.make_train(config), PUREJAXQL, rows, q_values)


def _scanned(
    train: Callable[..., Any],
    config: dict[str, Any],
    rows_per_update: int,
    q_values: Callable[[Any, Any], Any],
) -> Prepared:
    """Prepare a pure ``train(key)`` whose outermost operation is a scan over updates.

    Its own update runs in blocks, between which its parameters are evaluated.

    Args:
        train: builds the state and scans over updates.
        config: the settings.
        rows_per_update: rows of an update.
        q_values: ``q_values(state, obs [N, 4]) -> [N, 2]`` of the scan's carry.
    """
    import jax

    updates = -(-ROWS_PER_EVALUATION // rows_per_update)
    step, state = outer_scan(train, jax.random.PRNGKey(0))
    # Every call of ``train`` makes its own network and optimiser, which are part of the carry's
    # structure. Its leaves are put into the structure of the first carry, with the types that they
    # have after an update: some counts of returns start as whole numbers.
    structure = jax.tree.structure(state)

    def block(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: (step(state, None)[0], None), state, None, updates)[0]

    types_after = [leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(block, state))]

    def prepared(state: Any) -> Any:
        leaves = [
            jax.numpy.asarray(leaf, dtype)
            for leaf, dtype in zip(jax.tree.leaves(state), types_after, strict=True)
        ]
        return jax.block_until_ready(jax.tree.unflatten(structure, leaves))

    state = prepared(state)
    evaluate = _evaluator(q_values)
    begin = time.perf_counter()
    advance = jax.jit(block).lower(state).compile()
    evaluate = jax.jit(evaluate).lower(state, jax.random.PRNGKey(0)).compile()
    compile_seconds = time.perf_counter() - begin

    def start(seed: int) -> Learner:
        first = outer_scan(train, jax.random.PRNGKey(seed))[1]
        current = [prepared(first), 0]

        def advance_once() -> int:
            current[0] = jax.block_until_ready(advance(current[0]))
            current[1] += updates * rows_per_update
            return current[1]

        def evaluate_once(key: int) -> float:
            return float(evaluate(current[0], jax.random.PRNGKey(1_000_000 + key)))

        return Learner(advance_once, evaluate_once, int(config["TOTAL_TIMESTEPS"]))

    return compile_seconds, config, start


def outer_scan(train: Callable[..., Any], key: Any) -> tuple[Callable[..., Any], Any]:
    """Return the function and the first carry of the outermost scan of ``train``."""
    import jax

    scan: Any = jax.lax.scan
    found: list[tuple[Any, Any]] = []

    def first(function: Any, init: Any, *args: Any, **kwargs: Any) -> Any:
        if found:
            return scan(function, init, *args, **kwargs)
        found.append((function, init))
        return init, None

    jax.lax.scan = first  # type: ignore[assignment]
    try:
        train(key)
    finally:
        jax.lax.scan = scan
    return found[0]


def _evaluator(q_values: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make ``evaluate(state, key)``: the mean return of greedy episodes in gymnax."""
    import gymnax
    import jax
    import jax.numpy as jnp

    env, params = gymnax.make("CartPole-v1")

    def evaluate(state: Any, key: Any) -> Any:
        obs, env_state = jax.vmap(env.reset_env, in_axes=(0, None))(
            jax.random.split(key, EPISODES), params
        )

        def step(carry: Any, _: Any) -> Any:
            obs, env_state, running, total = carry
            actions = jnp.argmax(q_values(state, obs), axis=-1)
            obs, env_state, reward, done, _ = jax.vmap(env.step_env, in_axes=(None, 0, 0, None))(
                key, env_state, actions, params
            )
            return (obs, env_state, running & ~done, total + running * reward), None

        begin = (obs, env_state, jnp.ones(EPISODES, bool), jnp.zeros(EPISODES))
        (_, _, _, total), _ = jax.lax.scan(step, begin, None, LIMIT)
        return total.mean()

    return evaluate
