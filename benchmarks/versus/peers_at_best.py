"""Drive a peer on CartPole-v1 at its own best settings, in the peer's interpreter.

``benchmarks.versus --at-best`` starts this file once per peer: ``peers_at_best.py PEER ARGUMENT``.
It imports nothing of this project but its neighbours ``peers.py`` and ``drivers``. It writes
``{"compile_seconds": ..., "settings": ..., "versions": ..., "device_kind": ...}`` or ``{"missing":
...}``. It then reads one line per request: ``seed N`` starts a learner; each ``go`` trains it until
its next evaluation and answers ``{"rows", "seconds", "train_seconds", "return_mean", "fresh_mean",
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = {
    "purejaxrl": ("pure_jax_at_best", "purejaxrl", "jax"),
    "purejaxql": ("pure_jax_at_best", "purejaxql", "jax"),
    "sb3": ("stable_baselines_at_best", "stable_baselines3", "cpu"),
    "rllib": ("rllib_at_best", "rllib", "cpu"),
}
"""Module of ``drivers``, function and device of each peer; ``jax`` is the default device of JAX."""


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


def serve(channel: Any, start: Callable[[int], Any], solve_return: float) -> None:
    """Answer requests until they end; ``start(seed)`` returns a ``drivers.at_best.Learner``."""
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


def main(name: str, argument: str, solve_return: str) -> None:
    """Prepare a peer, and answer requests."""
    drivers = _peers().drivers
    channels = drivers("channel")
    channel = channels.Channel()
    module, function, device = PEERS[name]
    try:
        compile_seconds, settings, start = getattr(drivers(module), function)(argument)
    except channels.Missing as missing:
        part, source = missing.args
        channel.send(missing=part, get=source)
        return
    channel.send(
        compile_seconds=compile_seconds, settings=settings, versions=channels.versions(),
        device_kind=channels.jax_device() if device == "jax" else device,
    )  # fmt: skip
    serve(channel, start, float(solve_return))


if __name__ == "__main__":
    main(*sys.argv[1:])
