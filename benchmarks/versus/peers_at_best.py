"""Drive a peer on CartPole-v1 at its own best settings, in the peer's interpreter.

``benchmarks.versus --at-best`` starts this file once per peer: ``peers_at_best.py PEER ARGUMENT``.
It imports nothing of this project but its neighbours ``peers.py`` and ``drivers``. It
writes ``{"compile_seconds": ..., "settings": ..., "versions": ...}`` or ``{"missing": ...}``. It
then reads one line per request: ``seed N`` starts a learner; each ``go`` trains it until its next
evaluation and answers ``{"rows", "seconds", "train_seconds", "return_mean", "fresh_mean",
"spent"}``. ``seconds`` counts acting, learning and evaluations from the start of the learner, and
``fresh_mean`` is the return over further episodes if the first ones reached the solve return, else
None.

purejaxrl and purejaxql run with the settings of their repositories. Stable-Baselines3 runs with
those of RL Baselines3 Zoo for CartPole-v1, over four times their budget. RLlib runs with the
settings of the matched work.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROWS_PER_EVALUATION = 5_000
"""Minimum number of rows between evaluations."""

EPISODES = 100
LIMIT = 500
"""Environment steps after which an episode of CartPole-v1 is truncated."""

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


class Learner(NamedTuple):
    """A peer's learner of one seed."""

    advance: Callable[[], int]
    """Train until the next evaluation; return the rows so far."""
    evaluate: Callable[[int], float]
    """Return the mean return of greedy episodes; the argument seeds them."""
    rows: int
    """Budget."""


def purejaxrl(path: str) -> tuple[float, dict[str, Any], Callable[[int], Learner]]:
    """Prepare purejaxrl's DQN (dqn.py)."""
    module = (
        _peers()
        .drivers("pure_jax")
        .load_file(path, "purejaxrl", {"wandb": types.ModuleType("wandb")})
    )
    config = dict(PUREJAXRL)
    network = module.QNetwork(action_dim=2)

    def q_values(state: Any, obs: Any) -> Any:
        return network.apply(state[0].params, obs)

    return _scanned(module.make_train(config), PUREJAXRL, config["NUM_ENVS"], q_values)


def purejaxql(path: str) -> tuple[float, dict[str, Any], Callable[[int], Learner]]:
    """Prepare purejaxql's PQN (pqn_gymnax.py)."""
    replacements: dict[str, Any] = {
        name: types.ModuleType(name) for name in ("hydra", "omegaconf", "wandb", "safetensors")
    }
    replacements["hydra"].main = lambda **_: lambda function: function
    replacements["omegaconf"].OmegaConf = None
    replacements["safetensors.flax"] = types.ModuleType("safetensors.flax")
    replacements["safetensors.flax"].load_file = replacements["safetensors.flax"].save_file = None
    module = _peers().drivers("pure_jax").load_file(path, "purejaxql", replacements)
    config = dict(PUREJAXQL)
    network = module.QNetwork(action_dim=2, hidden_size=256, num_layers=2, norm_type="layer_norm")

    def q_values(state: Any, obs: Any) -> Any:
        variables = {"params": state[0].params, "batch_stats": state[0].batch_stats}
        return network.apply(variables, obs, train=False)

    rows = config["NUM_ENVS"] * config["NUM_STEPS"]
    return _scanned(module.make_train(config), PUREJAXQL, rows, q_values)


def stable_baselines3(argument: str) -> tuple[float, dict[str, Any], Callable[[int], Learner]]:
    """Prepare Stable-Baselines3's DQN with the settings of RL Baselines3 Zoo."""
    import_package = _peers().drivers("channel").import_package
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

        return Learner(lambda: next(blocks), lambda key: _play(evaluate_in, greedy, key), ZOO_ROWS)

    learner = start(0)
    begin = time.perf_counter()
    learner.advance()
    learner.evaluate(0)
    return time.perf_counter() - begin, {**ZOO, "rows": ZOO_ROWS}, start


def _blocks(model: Any) -> Iterator[int]:
    """Train one ``learn`` of the complete budget; yield the rows at each evaluation.

    ``learn`` cannot be paused without a thread, so its two phases are called directly.
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


RLLIB_ROWS = 500_000


def rllib(argument: str) -> tuple[float, dict[str, Any], Callable[[int], Learner]]:
    """Prepare RLlib's DQN with 2 environment runners, at the matched work."""
    import_package = _peers().drivers("channel").import_package
    rllib_config = _peers().drivers("rllib").rllib_config
    torch = import_package("torch", "'ray[rllib]' torch")
    gymnasium = import_package("gymnasium", "gymnasium")
    evaluate_in = gymnasium.make_vec("CartPole-v1", num_envs=EPISODES)
    running: list[Any] = []

    def start(seed: int) -> Learner:
        while running:  # environment runners of the previous learner would slow down the next
            running.pop().stop()
        algorithm = rllib_config(seed)[1].build_algo()
        running.append(algorithm)
        return rllib_learner(algorithm, torch, lambda greedy, key: _play(evaluate_in, greedy, key))

    begin = time.perf_counter()
    learner = start(0)
    learner.evaluate(0)
    return time.perf_counter() - begin, {"rows": RLLIB_ROWS}, start


def rllib_learner(
    algorithm: Any, torch: Any, play: Callable[[Callable[[Any], Any], int], float]
) -> Learner:
    """Return a learner for an algorithm of RLlib.

    Args:
        algorithm: new algorithm of RLlib.
        torch: module ``torch``.
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
        # The environment runner of this process may have older parameters than the learner.
        module, policy = algorithm.get_module(), "default_policy"
        module.set_state(algorithm.learner_group.get_weights()[policy])

        def greedy(obs: Any) -> Any:
            with torch.no_grad():
                return module.forward_inference({"obs": torch.as_tensor(obs)})["actions"].numpy()

        return play(greedy, key)

    return Learner(advance, evaluate, RLLIB_ROWS)


def _play(environments: Any, greedy: Callable[[Any], Any], key: int) -> float:
    """Return the mean return of the first episode of each environment of a vector."""
    import numpy as np

    obs, _ = environments.reset(seed=EPISODES * key)
    running, total = np.ones(EPISODES, bool), np.zeros(EPISODES)
    while running.any():
        obs, reward, terminated, truncated, _ = environments.step(greedy(obs))
        total += running * reward
        running &= ~(terminated | truncated)
    return float(total.mean())


def _scanned(
    train: Callable[..., Any],
    config: dict[str, Any],
    rows_per_update: int,
    q_values: Callable[[Any, Any], Any],
) -> tuple[float, dict[str, Any], Callable[[int], Learner]]:
    """Prepare a pure ``train(key)`` whose outermost operation is a scan over updates.

    The update of the library runs in blocks; between blocks the parameters are evaluated.

    Args:
        train: function that builds the state and scans over updates.
        config: settings of the library.
        rows_per_update: number of rows of an update.
        q_values: ``q_values(state, obs [N, 4]) -> [N, 2]``, where ``state`` is the scan's carry.
    """
    import jax

    updates = -(-ROWS_PER_EVALUATION // rows_per_update)
    step, state = _outer_scan(train, jax.random.PRNGKey(0))
    # Every call of ``train`` creates a new network and optimiser, which are part of the structure
    # of the carry. Therefore the leaves are put into the structure of the first carry. They are
    # converted to the types that they have after an update, because some start as integers.
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
        first = _outer_scan(train, jax.random.PRNGKey(seed))[1]
        current = [prepared(first), 0]

        def advance_once() -> int:
            current[0] = jax.block_until_ready(advance(current[0]))
            current[1] += updates * rows_per_update
            return current[1]

        def evaluate_once(key: int) -> float:
            return float(evaluate(current[0], jax.random.PRNGKey(1_000_000 + key)))

        return Learner(advance_once, evaluate_once, int(config["TOTAL_TIMESTEPS"]))

    return compile_seconds, config, start


def _outer_scan(train: Callable[..., Any], key: Any) -> tuple[Callable[..., Any], Any]:
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


def _peers() -> Any:
    """Load ``peers.py``; the interpreter's path does not include its directory."""
    spec = importlib.util.spec_from_file_location("peers", Path(__file__).with_name("peers.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get("peers") or importlib.util.module_from_spec(spec)
    if "peers" not in sys.modules:
        sys.modules["peers"] = module
        spec.loader.exec_module(module)
    return module


def serve(channel: Any, start: Callable[[int], Learner], solve_return: float) -> None:
    """Answer requests until standard input ends."""
    learner, seed, train_seconds, seconds, rows, solved = None, 0, 0.0, 0.0, 0, False
    for line in sys.stdin:
        name, _, argument = line.strip().partition(" ")
        if name == "seed":
            seed, train_seconds, seconds, solved = int(argument), 0.0, 0.0, False
            learner = start(seed)
            continue
        assert learner is not None
        begin = time.perf_counter()
        rows = learner.advance()
        train_seconds += time.perf_counter() - begin
        mean = learner.evaluate(2 * seed)
        fresh = None
        if mean >= solve_return and not solved:
            fresh = learner.evaluate(2 * seed + 1 + 1_000 * rows)
            solved = fresh >= solve_return
        seconds += time.perf_counter() - begin
        channel.send(
            rows=rows, seconds=seconds, train_seconds=train_seconds, return_mean=mean,
            fresh_mean=fresh, spent=rows >= learner.rows,
        )  # fmt: skip


PEERS = {
    "purejaxrl": purejaxrl,
    "purejaxql": purejaxql,
    "sb3": stable_baselines3,
    "rllib": rllib,
}


def main(name: str, argument: str, solve_return: str) -> None:
    """Prepare a peer, and answer requests."""
    peers = _peers().drivers("channel")
    channel = peers.Channel()
    try:
        compile_seconds, settings, start = PEERS[name](argument)
    except peers.Missing as missing:
        part, source = missing.args
        channel.send(missing=part, get=source)
        return
    channel.send(compile_seconds=compile_seconds, settings=settings, versions=peers.versions())
    serve(channel, start, float(solve_return))


if __name__ == "__main__":
    main(*sys.argv[1:])
