"""Ray: the only module that imports it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxdqn
from jaxdqn.errors import RunFailed, reject

_CONNECT_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def import_ray() -> ModuleType:
    """Return the module ``ray``.

    Raises:
        ValueError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError(
            "engine='ray': needs Ray, which is not installed; pip install \"jaxdqn[ray]\""
        ) from None
    return ray


class RayCluster:
    """A Ray cluster for one run: one that is started on this machine, or a running one.

    Args:
        workers: number of workers, each of which takes one CPU.
        address: HOST:PORT of a running cluster, or ``auto``; None starts one on this machine, whose
            listeners are on loopback.

    Raises:
        ValueError: if Ray is not installed, the address does not answer or has too few CPUs.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self.ray = import_ray()
        environment = {"JAX_PLATFORMS": "cpu"}
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            # Workers import the same source tree as this process.
            root = str(Path(jaxdqn.__file__).parents[1])
            path = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = root if not path else f"{root}{os.pathsep}{path}"
            options |= {"num_cpus": workers, "include_dashboard": False}
            options |= {"_node_ip_address": "127.0.0.1"}
        else:
            options["address"] = address
        try:
            with _keeping_signal_handlers(), warnings.catch_warnings():
                # JAX warns of every fork; Ray's is followed by the start of another program.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                self.ray.init(runtime_env={"env_vars": environment}, **options)
        except (ConnectionError, RuntimeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            reject("ray_address", address, f"a Ray cluster of version {self.ray.__version__} that "
                   f"this process can join: {first}")  # fmt: skip
        self._check_cpus(workers, address)

    def _check_cpus(self, workers: int, address: str | None) -> None:
        cpus = int(self.ray.cluster_resources().get("CPU", 0))
        if cpus < workers:
            self.close()
            reject("ray_address", address, f"a cluster with at least {workers} CPUs, one for each "
                   f"actor and shard; it has {cpus}")  # fmt: skip

    def start(self, worker: type, *arguments: Any) -> Any:
        """Start a worker in a process of its own, and return its handle.

        If its process dies, Ray starts it again, and the calls in flight fail.
        """
        actor = self.ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)(worker)
        return actor.remote(*arguments)

    def stop(self, worker: Any) -> None:
        """End the process of a worker for good."""
        self.ray.kill(worker)

    def put(self, value: Any) -> Any:
        """Return a reference to a value in the object store.

        Raises:
            RunFailed: if the object store is full.
        """
        try:
            return self.ray.put(value)
        except self.ray.exceptions.ObjectStoreFullError as error:
            raise RunFailed(f"the object store of Ray is full: {error}") from error

    def wait(self, futures: list[Any], timeout: float | None) -> list[Any]:
        """Return the futures that are ready; wait for the first for ``timeout`` seconds."""
        if not self.ray.wait(futures, num_returns=1, timeout=timeout)[0]:
            return []
        return list(self.ray.wait(futures, num_returns=len(futures), timeout=0)[0])

    def result(self, future: Any) -> Any:
        """Return the result of a call.

        Raises:
            WorkerDied: if the process of the worker died.
            RunFailed: if the call raised an exception, or the object store is full.
        """
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(future)
        except exceptions.RayActorError as error:
            raise WorkerDied(str(error)) from error
        except exceptions.ObjectStoreFullError as error:
            raise RunFailed(f"the object store of Ray is full: {error}") from error
        except exceptions.RayTaskError as error:
            raise RunFailed(f"a worker failed: {error.cause!r}") from error

    def close(self) -> None:
        """End the workers; end a cluster that was started here."""
        self.ray.shutdown()


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers at the end: Ray replaces them, and a run stops by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


class WorkerDied(Exception):
    """The process of a worker died during a call."""


def check_address(address: str | None) -> None:
    """Check that something answers at the address of a cluster.

    Raises:
        ValueError: if nothing does within five seconds, or the address is malformed.
    """
    if address in (None, "auto"):
        return
    assert address is not None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        reject("ray_address", address, "'auto' or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        reject("ray_address", address, f"the address of a Ray cluster that answers: {error}")
