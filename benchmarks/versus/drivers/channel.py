"""Channel between a driver and ``benchmarks.versus``, and the packages of peers."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "ray",
    "jax",
    "gymnax",
    "flashbax",
    "gymnasium",
    "torch",
    "stable_baselines3",
    "sbx-rl",
    "rejax",
    "torchrl",
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

    def ready(self, compile_seconds: float, device_kind: str) -> None:
        """Report that the peer is ready for measurement on a device."""
        self.send(compile_seconds=compile_seconds, device_kind=device_kind, versions=versions())

    def wait_for_request(self) -> bool:
        """Wait for the next request; return False at the end of the requests."""
        return sys.stdin.readline().strip() == "go"


def existing_file(path: str, source: str) -> Path:
    if not Path(path).is_file():
        raise Missing(f"{path or 'its file'}: no such file", f"{source}, as --peer PEER=FILE")
    return Path(path)


def limit_torch_threads() -> None:
    """Set the number of threads of PyTorch to that of XLA, if it is set."""
    threads = os.environ.get("NPROC")
    if threads is not None:
        import_package("torch", "torch").set_num_threads(int(threads))


def import_package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(error.name or module, f"pip install {distribution}") from None


def jax_device() -> str:
    """Return the kind of the default device of JAX."""
    return import_package("jax", "jax").devices()[0].device_kind


def torch_device(device: Any) -> str:
    """Return the kind of a device of PyTorch, by the name that JAX has for it."""
    kind = str(device).partition(":")[0]
    return import_package("torch", "torch").cuda.get_device_name() if kind == "cuda" else kind


def versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
