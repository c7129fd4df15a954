"""Run a few iterations without ``jit`` to debug a custom loss, network or environment."""

from __future__ import annotations

import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

import jaxdqn
from jaxdqn.config.config import Config, replace
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.options import PARALLEL_OPTIONS
from jaxdqn.errors import RunFailed
from jaxdqn.storage.parts import resolve_parts
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.vector_programs import jit_vector_programs
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import VectorTrainer, make_single_trainer
from jaxdqn.types import Metrics, TrainState

ITERATIONS = 3
_ENVS, _BATCH, _SLACK = 2, 8, 4
FLAGS = {
    "jax_disable_jit": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_transfer_guard": "allow",
}
"""JAX flags, set for all threads: with environments on the host, a separate thread learns."""
_LIBRARY = str(Path(jaxdqn.__file__).parent)


def debug(
    config: Config,
    *,
    iterations: int = ITERATIONS,
    report: Callable[[str], None] = print,
    **parts: Any,
) -> list[Metrics]:
    """Run iterations one by one without ``jit``, at small sizes, on one device.

    ``print`` and ``breakpoint()`` in custom parts see values. Every operation is checked for NaN
    and infinity. Environments on the host are stepped in this process, without overlap.

    Args:
        config: configuration of the run, whose sizes ``debug_config`` reduces.
        iterations: number of iterations after the warm-up.
        report: function that receives lines of text.
        parts: custom parts, as for ``jaxdqn.run.runner.run``.

    Returns:
        The metrics of each iteration.

    Raises:
        ValueError: if the configuration or a custom part is invalid.
        RunFailed: if an output is not finite; the message names the function.
    """
    small = debug_config(config)
    report(f"without jit, at small sizes: {_changes(config, small)}")
    objects = resolve_parts(parts, {}, run="").objects
    metrics = []
    with ExitStack() as stack:
        for name, value in FLAGS.items():
            stack.callback(jax.config.update, name, getattr(jax.config, name))
            jax.config.update(name, value)
        stack.enter_context(_infinities_inside_jax())
        init, step = _functions(make_single_trainer(small, **objects), stack)
        try:
            state = init(jax.random.key(config.seed))
            report("warm-up complete")
            for index in range(iterations):
                state, found = step(state)
                metrics.append(found)
                report(f"iteration {index + 1} of {iterations}: loss {float(found.loss):.6g}")
        except FloatingPointError as error:
            raise RunFailed(f"{_culprit(error)}: its output is not finite ({error})") from error
    return metrics


@contextmanager
def _infinities_inside_jax() -> Iterator[None]:
    """Let functions of JAX compute with infinity inside, which the checks would report.

    Those of softmax begin a maximum at minus infinity, and ``xlogy`` multiplies 0 by the logarithm
    of 0 and drops the NaN. Their outputs are checked.
    """

    def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with jax.debug_infs(False), jax.debug_nans(False):
                found = function(*arguments, **options)
            # An operation on the output checks it.
            return jax.tree.map(lambda leaf: jax.lax.mul(leaf, jnp.ones_like(leaf)), found)

        return call

    replaced = [
        (module, name, getattr(module, name))
        for module in (jax.nn, jax.scipy.special)
        for name in ("softmax", "log_softmax", "logsumexp", "xlogy", "xlog1py", "entr")
        if hasattr(module, name)
    ]
    for module, name, function in replaced:
        setattr(module, name, unchecked(function))
    try:
        yield
    finally:
        for module, name, function in replaced:
            setattr(module, name, function)


def _functions(trainer: Any, stack: ExitStack) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return ``init(key) -> state`` and ``step(state) -> (state, metrics)`` of a trainer."""
    if not isinstance(trainer, VectorTrainer):
        return trainer.init, trainer.step
    runner = VectorRunner(trainer, jit_vector_programs(trainer))
    stack.callback(runner.close)
    hyper = hyper_from(trainer.config)

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        state, (metrics, _) = runner.chunk(state, 1)
        return state, metrics

    return lambda key: runner.init(key, hyper), step


def debug_config(config: Config) -> Config:
    """Reduce the sizes of a configuration so that an iteration without ``jit`` takes seconds."""
    envs, rows = min(config.num_envs, _ENVS), config.rollout_length
    single = {name: getattr(Config, name) for name in PARALLEL_OPTIONS}
    changed: dict[str, Any] = {**single, "num_envs": envs}
    if is_host_env(config.env):
        changed |= {name: getattr(Config, name) for name in ("env_processes", "act_on")}
        changed["overlap"] = False
    if config.algorithm == "pqn":
        return replace(config, **changed, minibatches=1, epochs=1)
    batch = min(config.batch_size, _BATCH)
    reach = config.reach + config.frame_stack + rows + config.start_stride
    warmup = max(envs * (reach + _SLACK), batch * config.accumulate)
    warmup = -(-warmup // (envs * rows)) * envs * rows
    changed |= {"batch_size": batch, "warmup_rows": warmup, "replay_capacity": 4 * warmup}
    changed |= {"replay_ratio": None, "gradient_steps": 1}
    return replace(config, **changed)


def _changes(before: Config, after: Config) -> str:
    """Return the values of the changed options as text."""
    names = [field.name for field in dataclasses.fields(Config)]
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return ", ".join(f"{name}={getattr(after, name)!r}" for name in changed) or "none changed"


def _culprit(error: BaseException) -> str:
    """Return the innermost function of the traceback in this library or in the caller's code.

    JAX raises the error where the operation is called, so this function produced the value.
    """
    found: FrameType | None = None
    line = 0
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        own = file.startswith(_LIBRARY) or ("site-packages" not in file and not _standard(file))
        if own:
            found, line = frame, number
    if found is None:
        return "an operation of JAX"
    return f"{found.f_code.co_qualname} ({found.f_code.co_filename}:{line})"


def _standard(file: str) -> bool:
    return file.startswith((sys.base_prefix, "<"))
