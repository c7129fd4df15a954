"""Drive a peer on the matched work, in the peer's interpreter. Imports nothing of this project.

``benchmarks.versus`` starts this file once per peer: ``peers.py PEER ARGUMENT GRADIENT_STEPS``,
the last being the work of one measurement. It calls the public entry of the peer and writes lines
of JSON: first ``{"compile_seconds": ..., "versions": ...}`` (or ``{"missing": ..., "get": ...}``),
then ``{"seconds": ..., "env_steps": ..., "gradient_steps": ...}`` for every line ``go`` that it
reads. ``compile_seconds`` is the compilation of the run; for a peer that compiles on demand it is
the time until the first learning is done.

The matched work is CartPole-v1, batch 128, a replay of 10 000, one gradient step per 10 environment
steps, an MLP of 120 and 84 units, Adam, and epsilon at its final value 0.05. For purejaxql it is
PQN as published: Breakout-MinAtar, 128 environments, 32 steps, 32 minibatches, 2 epochs. For
sb3-host and sbx-host it is CartPole-v1 in 8 environments on the host, an MLP of 64 and 64 units,
and after every K vector steps M gradient steps of batch B, the argument being K,B,M. For rllib it
is the matched work with prioritised replay and two environment runners.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENV_STEPS_PER_GRADIENT_STEP = 10
BATCH_SIZE = 128
CAPACITY = 10_000
LEARNING_RATE = 2.5e-4
TARGET_PERIOD = 500  # environment steps
EPSILON = 0.05
HIDDEN_SIZES = [120, 84]

HOST_ENVS = 8
HOST_CAPACITY = 65_536
HOST_WARMUP = 1_024
HOST_HIDDEN_SIZES = [64, 64]

_SOURCES = {
    "purejaxrl": "https://github.com/luchris429/purejaxrl (purejaxrl/dqn.py)",
    "purejaxql": "https://github.com/mttga/purejaxql (purejaxql/pqn_minatar.py)",
}
_PACKAGES = (
    "ray",
    "jax",
    "gymnax",
    "flashbax",
    "gymnasium",
    "torch",
    "stable_baselines3",
    "sbx-rl",
)


class Missing(Exception):
    """The peer is unavailable; the arguments are the missing part and its source."""


class Channel:
    """Channel to ``benchmarks.versus`` on standard output; output of the peer goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        """Send a message."""
        print(json.dumps(message), file=self._out, flush=True)

    def ready(self, compile_seconds: float) -> None:
        """Report that the peer is ready for measurement."""
        self.send(compile_seconds=compile_seconds, versions=_versions())

    def wait_for_request(self) -> bool:
        """Wait for the next request; return False at the end of the requests."""
        return sys.stdin.readline().strip() == "go"


def purejaxrl(channel: Channel, path: str, gradient_steps: int) -> None:
    """Drive purejaxrl's ``make_train`` (10 environments); each measurement is a complete run."""
    module = _load_file(path, "purejaxrl", {"wandb": types.ModuleType("wandb")})
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
        # Learning starts once the buffer holds a batch.
        "LEARNING_STARTS": 0,
        "TRAINING_INTERVAL": ENV_STEPS_PER_GRADIENT_STEP,
        "LR_LINEAR_DECAY": False,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": "CartPole-v1",
        "WANDB_MODE": "disabled",
    }
    _complete_runs(channel, module.make_train(config), env_steps, "updates")


def purejaxql(channel: Channel, path: str, gradient_steps: int) -> None:
    """Drive purejaxql's ``make_train`` (pqn_minatar.py); each measurement is a complete run."""
    hydra: Any = types.ModuleType("hydra")
    hydra.main = lambda **_: lambda function: function
    omegaconf: Any = types.ModuleType("omegaconf")
    omegaconf.OmegaConf = None
    replacements = {"hydra": hydra, "omegaconf": omegaconf, "wandb": types.ModuleType("wandb")}
    module = _load_file(path, "purejaxql", replacements)
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
    _complete_runs(channel, module.make_train(config), env_steps, "grad_steps")


def stable_baselines3(channel: Channel, num_envs: str, gradient_steps: int) -> None:
    """Drive Stable-Baselines3's DQN; each measurement continues ``learn``."""
    package = _import("stable_baselines3", "stable-baselines3")
    _limit_torch_threads()
    _stable_baselines(channel, package.DQN, num_envs, gradient_steps, device="cpu")


def sbx(channel: Channel, num_envs: str, gradient_steps: int) -> None:
    """Drive SBX's DQN; each measurement continues ``learn``."""
    _stable_baselines(channel, _import("sbx", "sbx-rl").DQN, num_envs, gradient_steps)


def stable_baselines3_host(channel: Channel, cadence: str, gradient_steps: int) -> None:
    """Drive Stable-Baselines3's DQN on the work of environments on the host."""
    package = _import("stable_baselines3", "stable-baselines3")
    _limit_torch_threads()
    _stable_baselines_host(channel, package.DQN, cadence, gradient_steps, device="cpu")


def sbx_host(channel: Channel, cadence: str, gradient_steps: int) -> None:
    """Drive SBX's DQN on the work of environments on the host."""
    _stable_baselines_host(channel, _import("sbx", "sbx-rl").DQN, cadence, gradient_steps)


def cleanrl(channel: Channel, path: str, gradient_steps: int) -> None:
    """Drive CleanRL's ``dqn_jax.py``; the script runs once, paused where it logs its speed."""
    _import("torch", "torch")
    script = _existing(path, "https://github.com/vwxyzjn/cleanrl (cleanrl/dqn_jax.py)")
    root = script.resolve().parent.parent
    if not (root / "cleanrl_utils").is_dir():
        raise Missing(f"cleanrl_utils beside {path}", "git clone the repository")
    sys.path.insert(0, str(root))
    _emulate_gymnasium_0_29()
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _make_pausing_writer(channel, gradient_steps)
    sys.modules["torch.utils.tensorboard"] = module
    flags = {
        "total-timesteps": 10**9,
        "buffer-size": CAPACITY,
        "batch-size": BATCH_SIZE,
        "learning-rate": LEARNING_RATE,
        "target-network-frequency": TARGET_PERIOD,
        "train-frequency": ENV_STEPS_PER_GRADIENT_STEP,
        "learning-starts": 2 * BATCH_SIZE,
        "start-e": EPSILON,
        "end-e": EPSILON,
    }
    sys.argv = [str(script), *(f"--{name}={value}" for name, value in flags.items())]
    runpy.run_path(str(script), run_name="__main__")


def _complete_runs(
    channel: Channel, train: Callable[..., Any], env_steps: int, counter: str
) -> None:
    """Measure a pure function ``train(key)`` that makes a complete run; each run has a new seed.

    ``counter`` is the metric that counts the gradient steps of a run.
    """
    jax: Any = sys.modules["jax"]
    start = time.perf_counter()
    run = jax.jit(train).lower(jax.random.PRNGKey(0)).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(run(jax.random.PRNGKey(0)))
    channel.ready(compile_seconds)
    seed = 1
    while channel.wait_for_request():
        key = jax.block_until_ready(jax.random.PRNGKey(seed))
        start = time.perf_counter()
        out = jax.block_until_ready(run(key))
        seconds = time.perf_counter() - start
        updates = int(out["metrics"][counter][-1])
        channel.send(seconds=seconds, env_steps=env_steps, gradient_steps=updates)
        seed += 1


def _stable_baselines(
    channel: Channel, algorithm: Any, num_envs: str, gradient_steps: int, **options: Any
) -> None:
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
        **options,
    )
    _continue_learning(channel, model, warmup, gradient_steps * ENV_STEPS_PER_GRADIENT_STEP)


def _stable_baselines_host(
    channel: Channel, algorithm: Any, cadence: str, gradient_steps: int, **options: Any
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
        **options,
    )
    rows = gradient_steps // updates * steps * HOST_ENVS
    _continue_learning(channel, model, HOST_WARMUP, rows)


def _limit_torch_threads() -> None:
    """Use as many threads in PyTorch as XLA has been told to use, if it has."""
    threads = os.environ.get("NPROC")
    if threads is not None:
        _import("torch", "torch").set_num_threads(int(threads))


def _vector_environment(envs: int) -> Any:
    package = _import("stable_baselines3", "stable-baselines3")
    return package.common.env_util.make_vec_env("CartPole-v1", n_envs=envs, seed=0)


def _continue_learning(channel: Channel, model: Any, warmup: int, env_steps: int) -> None:
    """Measure ``env_steps`` of a model for every request, after its warm-up."""
    start = time.perf_counter()
    model.learn(2 * warmup, log_interval=None)
    channel.ready(time.perf_counter() - start)
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


def _make_pausing_writer(channel: Channel, gradient_steps: int) -> Callable[..., Any]:
    """Make a replacement of the script's log writer that waits for requests.

    Every 100 steps the script logs the loss, which waits for the device, and then its speed. The
    writer therefore measures between two logs of the speed.
    """
    start = time.perf_counter()
    started: list[tuple[float, int]] = []

    class Writer:
        def add_text(self, *args: Any) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            if name != "charts/SPS":
                return
            now = time.perf_counter()
            if not started:
                channel.ready(now - start)
            else:
                since, first = started[-1]
                if step - first < gradient_steps * ENV_STEPS_PER_GRADIENT_STEP:
                    return
                steps = step - first
                updates = steps // ENV_STEPS_PER_GRADIENT_STEP
                channel.send(seconds=now - since, env_steps=steps, gradient_steps=updates)
            if not channel.wait_for_request():
                raise SystemExit
            started.append((time.perf_counter(), step))

    return lambda *args, **kwargs: Writer()


def _emulate_gymnasium_0_29() -> None:
    """Give vector environments of gymnasium 1 the interface of 0.29, which the script expects."""
    vector = _import("gymnasium", "gymnasium").vector
    if not hasattr(vector, "AutoresetMode"):
        return
    original = vector.SyncVectorEnv

    class SyncVectorEnv(original):  # type: ignore[misc, valid-type]
        def __init__(self, env_fns: Any) -> None:
            super().__init__(env_fns, autoreset_mode=vector.AutoresetMode.SAME_STEP)

        def step(self, actions: Any) -> Any:
            *result, infos = super().step(actions)
            infos.pop("final_info", None)
            if "final_obs" in infos:
                infos["final_observation"] = infos.pop("final_obs")
            return (*result, infos)

    vector.SyncVectorEnv = SyncVectorEnv


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
    channel.ready(time.perf_counter() - started)
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
    """Start Ray; return its module, and the configuration of RLlib's DQN at the matched work."""
    ray = _import("ray", "'ray[rllib]'")
    dqn = _import("ray.rllib.algorithms.dqn", "'ray[rllib]' torch")
    model = _import("ray.rllib.core.rl_module.default_model_config", "'ray[rllib]' torch")
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
            # Rows trained on over rows sampled.
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


def _load_file(path: str, name: str, replacements: dict[str, Any]) -> Any:
    file = _existing(path, _SOURCES[name])
    jax = _import("jax", "jax")
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


def _existing(path: str, source: str) -> Path:
    if not Path(path).is_file():
        raise Missing(f"{path or 'its file'}: no such file", f"{source}, as --peer PEER=FILE")
    return Path(path)


def _import(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(error.name or module, f"pip install {distribution}") from None


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


PEERS: dict[str, Callable[[Channel, str, int], None]] = {
    "purejaxrl": purejaxrl,
    "purejaxql": purejaxql,
    "sb3": stable_baselines3,
    "sbx": sbx,
    "cleanrl": cleanrl,
    "sb3-host": stable_baselines3_host,
    "sbx-host": sbx_host,
    "rllib": rllib,
}


def main(name: str, argument: str, gradient_steps: str) -> None:
    """Drive one peer until the requests end."""
    channel = Channel()
    try:
        PEERS[name](channel, argument, int(gradient_steps))
    except Missing as missing:
        part, source = missing.args
        channel.send(missing=part, get=source)


if __name__ == "__main__":
    main(*sys.argv[1:])
