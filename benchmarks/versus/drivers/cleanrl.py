"""Drive CleanRL's script."""

from __future__ import annotations

import runpy
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
    LEARNING_RATE,
    TARGET_PERIOD,
)


def cleanrl(channel: Channel, path: str, gradient_steps: int) -> None:
    """Drive CleanRL's ``dqn_jax.py``; the script runs once, and pauses where it logs its speed."""
    import_package("torch", "torch")
    script = existing_file(path, "https://github.com/vwxyzjn/cleanrl (cleanrl/dqn_jax.py)")
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


def _make_pausing_writer(channel: Channel, gradient_steps: int) -> Callable[..., Any]:
    """Make a replacement for the script's log writer that waits for requests.

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
                channel.ready(now - start, jax_device())
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
    """Adapt vector environments of gymnasium 1 to the interface of 0.29, which the script uses."""
    vector = import_package("gymnasium", "gymnasium").vector
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
