"""Drive a peer in its own interpreter. Imports nothing of this project but ``drivers``.

``benchmarks.versus`` starts this file once per peer: ``peers.py PEER ARGUMENT GRADIENT_STEPS``, the
last being the work of one measurement. It calls the public entry of the peer and writes lines of
JSON: first ``{"compile_seconds": ..., "device_kind": ..., "versions": ...}`` (or ``{"missing": ...,
"get": ...}``), then ``{"seconds": ..., "env_steps": ..., "gradient_steps": ...}`` for every line
``go`` that it reads. ``compile_seconds`` is the compilation of the run; for a peer that compiles on
demand it is the time until the first learning is done.

The matched work is CartPole-v1, batch 128, a replay of 10 000, one gradient step per 10 environment
steps, an MLP of 120 and 84 units, Adam, and epsilon at its final value 0.05. For purejaxql it is
PQN as published: Breakout-MinAtar, 128 environments, 32 steps, 32 minibatches, 2 epochs. For
sb3-host and sbx-host it is CartPole-v1 in 8 environments on the host, an MLP of 64 and 64 units,
and after every K vector steps M gradient steps of batch B, the argument being K,B,M. For rllib it
is the matched work with prioritised replay and two environment runners. For flashbax it is the
replay alone: add 10 rows, draw 128.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

PEERS = {
    "purejaxrl": ("pure_jax", "purejaxrl"),
    "purejaxrl-milabench": ("milabench", "purejaxrl"),
    "purejaxql": ("pure_jax", "purejaxql"),
    "rejax": ("pure_jax", "rejax"),
    "flashbax": ("flashbax", "flashbax"),
    "sb3": ("stable_baselines", "stable_baselines3"),
    "sbx": ("stable_baselines", "sbx"),
    "sb3-host": ("stable_baselines", "stable_baselines3_host"),
    "sbx-host": ("stable_baselines", "sbx_host"),
    "cleanrl": ("cleanrl", "cleanrl"),
    "rllib": ("rllib", "rllib"),
    "torchrl": ("torchrl", "torchrl"),
}
"""Module of ``drivers`` and function of each peer."""

_PACKAGE = "jaxdqn_peer_drivers"
"""Name under which ``drivers`` is imported; no peer has a package of this name."""


def drivers(module: str) -> Any:
    """Import a module of ``drivers``, whose directory is not on the interpreter's path."""
    if _PACKAGE not in sys.modules:
        file = Path(__file__).with_name("drivers") / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, file, submodule_search_locations=[str(file.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{_PACKAGE}.{module}")


def main(name: str, argument: str, gradient_steps: str) -> None:
    """Drive one peer until the requests end."""
    module, function = PEERS[name]
    channels = drivers("channel")
    channel = channels.Channel()
    try:
        getattr(drivers(module), function)(channel, argument, int(gradient_steps))
    except channels.Missing as missing:
        part, source = missing.args
        channel.send(missing=part, get=source)


if __name__ == "__main__":
    main(*sys.argv[1:])
