"""Drive a peer at the matched work, in the peer's own interpreter.

``benchmarks.versus`` starts this file once for each peer: ``peers.py PEER
ARGUMENT GRADIENT_STEPS``, the last being the work of one measurement. It uses the
peer through its public entry, and speaks in lines of JSON: first
``{"compile_seconds": ..., "versions": ...}`` (or ``{"missing": ..., "get": ...}``),
then after every line ``go`` that it reads
``{"seconds": ..., "env_steps": ..., "gradient_steps": ...}``. Compilation is that of
the run; of a peer that compiles as it goes, all until it has first learned.

The matched work is CartPole-v1, batch 128, a ring of 10 000, a gradient step
every 10 environment steps, an MLP of 120 and 84 units, Adam, and epsilon at
its final 0.05. For purejaxql it is PQN as published: Breakout-MinAtar, 128 environments, 32
steps, 32 minibatches, 2 epochs. It imports nothing of this project.
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

_SOURCES = {
    "purejaxrl": "https://github.com/luchris429/purejaxrl (purejaxrl/dqn.py)",
    "purejaxql": "https://github.com/mttga/purejaxql (purejaxql/pqn_minatar.py)",
}
_PACKAGES = ("jax", "gymnax", "flashbax", "gymnasium", "torch", "stable_baselines3", "sbx-rl")


class Missing(Exception):
    """The peer is not there; the arguments say what is missing and how to get it."""


class Line:
    """The line to ``benchmarks.versus``: standard output, which the peer may not write to."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **message: Any) -> None:
        """Send a message."""
        print(json.dumps(message), file=self._out, flush=True)

    def ready(self, compile_seconds: float) -> None:
        """Say that the peer can be timed."""
        self.say(compile_seconds=compile_seconds, versions=_versions())

    def asked(self) -> bool:
        """Wait for the next request; false when there are no more."""
        return sys.stdin.readline().strip() == "go"


def purejaxrl(line: Line, path: str, gradient_steps: int) -> None:
    """Drive purejaxrl's ``make_train`` (10 environments): a call is a whole short run."""
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
        # It learns as soon as the buffer holds a batch.
        "LEARNING_STARTS": 0,
        "TRAINING_INTERVAL": ENV_STEPS_PER_GRADIENT_STEP,
        "LR_LINEAR_DECAY": False,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": "CartPole-v1",
        "WANDB_MODE": "disabled",
    }
    _whole_runs(line, module.make_train(config), env_steps, "updates")


def purejaxql(line: Line, path: str, gradient_steps: int) -> None:
    """Drive purejaxql's ``make_train`` of ``pqn_minatar.py``: a call is a whole short run."""
    hydra: Any = types.ModuleType("hydra")
    hydra.main = lambda **_: lambda function: function
    omegaconf: Any = types.ModuleType("omegaconf")
    omegaconf.OmegaConf = None
    stand_ins = {"hydra": hydra, "omegaconf": omegaconf, "wandb": types.ModuleType("wandb")}
    module = _load_file(path, "purejaxql", stand_ins)
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
    _whole_runs(line, module.make_train(config), env_steps, "grad_steps")


def stable_baselines3(line: Line, num_envs: str, gradient_steps: int) -> None:
    """Drive Stable-Baselines3's DQN; a call is ``learn`` continued."""
    package = _import("stable_baselines3", "stable-baselines3")
    _stable_baselines(line, package.DQN, num_envs, gradient_steps, device="cpu")


def sbx(line: Line, num_envs: str, gradient_steps: int) -> None:
    """Drive SBX's DQN; a call is ``learn`` continued."""
    _stable_baselines(line, _import("sbx", "sbx-rl").DQN, num_envs, gradient_steps)


def cleanrl(line: Line, path: str, gradient_steps: int) -> None:
    """Drive CleanRL's ``dqn_jax.py``: the script runs once, held up where it reports its speed."""
    _import("torch", "torch")
    script = _existing(path, "https://github.com/vwxyzjn/cleanrl (cleanrl/dqn_jax.py)")
    root = script.resolve().parent.parent
    if not (root / "cleanrl_utils").is_dir():
        raise Missing(f"cleanrl_utils beside {path}", "git clone the whole repository")
    sys.path.insert(0, str(root))
    _fit_vector_env()
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _make_holding_writer(line, gradient_steps)
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


def _whole_runs(line: Line, train: Callable[..., Any], env_steps: int, counted: str) -> None:
    """Measure a pure ``train(key)``, which is a whole run, a seed at a time.

    ``counted`` is the metric that says how many gradient steps a run has taken.
    """
    jax: Any = sys.modules["jax"]
    start = time.perf_counter()
    run = jax.jit(train).lower(jax.random.PRNGKey(0)).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(run(jax.random.PRNGKey(0)))
    line.ready(compile_seconds)
    seed = 1
    while line.asked():
        key = jax.block_until_ready(jax.random.PRNGKey(seed))
        start = time.perf_counter()
        out = jax.block_until_ready(run(key))
        seconds = time.perf_counter() - start
        learned = int(out["metrics"][counted][-1])
        line.say(seconds=seconds, env_steps=env_steps, gradient_steps=learned)
        seed += 1


def _stable_baselines(
    line: Line, learner: Any, num_envs: str, gradient_steps: int, **options: Any
) -> None:
    envs = int(num_envs or 1)
    make_vec_env = _import("stable_baselines3", "stable-baselines3").common.env_util.make_vec_env
    warmup = 4 * BATCH_SIZE
    model = learner(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=envs, seed=0),
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
    start = time.perf_counter()
    model.learn(2 * warmup, log_interval=None)
    line.ready(time.perf_counter() - start)
    while line.asked():
        before, updates = model.num_timesteps, model._n_updates
        start = time.perf_counter()
        model.learn(
            gradient_steps * ENV_STEPS_PER_GRADIENT_STEP,
            reset_num_timesteps=False,
            log_interval=None,
        )
        seconds = time.perf_counter() - start
        line.say(
            seconds=seconds,
            env_steps=model.num_timesteps - before,
            gradient_steps=model._n_updates - updates,
        )


def _make_holding_writer(line: Line, gradient_steps: int) -> Callable[..., Any]:
    """Make a stand-in for the script's log writer that waits for requests.

    The script logs its speed every 100 steps, last of what it logs, with the
    loss fetched from the device just before.
    """
    start = time.perf_counter()
    began: list[tuple[float, int]] = []

    class Writer:
        def add_text(self, *args: Any) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            if name != "charts/SPS":
                return
            now = time.perf_counter()
            if not began:
                line.ready(now - start)
            else:
                since, first = began[-1]
                if step - first < gradient_steps * ENV_STEPS_PER_GRADIENT_STEP:
                    return
                steps = step - first
                learned = steps // ENV_STEPS_PER_GRADIENT_STEP
                line.say(seconds=now - since, env_steps=steps, gradient_steps=learned)
            if not line.asked():
                raise SystemExit
            began.append((time.perf_counter(), step))

    return lambda *args, **kwargs: Writer()


def _fit_vector_env() -> None:
    """Let gymnasium 1's vector environments answer as 0.29's did, for which the script is."""
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


def _load_file(path: str, name: str, stand_ins: dict[str, Any]) -> Any:
    file = _existing(path, _SOURCES[name])
    jax = _import("jax", "jax")
    for package in ("gymnax", "flashbax") if name == "purejaxrl" else ("gymnax",):
        if importlib.util.find_spec(package) is None:
            raise Missing(package, f"pip install {package}")
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map
    sys.modules.update(stand_ins)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _existing(path: str, source: str) -> Path:
    if not Path(path).is_file():
        raise Missing(f"{path or 'its file'}: no such file", f"{source}, given as PEER=FILE")
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


PEERS: dict[str, Callable[[Line, str, int], None]] = {
    "purejaxrl": purejaxrl,
    "purejaxql": purejaxql,
    "sb3": stable_baselines3,
    "sbx": sbx,
    "cleanrl": cleanrl,
}


def main(name: str, argument: str, gradient_steps: str) -> None:
    """Drive one peer until its requests end."""
    line = Line()
    try:
        PEERS[name](line, argument, int(gradient_steps))
    except Missing as missing:
        what, how = missing.args
        line.say(missing=what, get=how)


if __name__ == "__main__":
    main(*sys.argv[1:])
