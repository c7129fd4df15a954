"""Ray cluster of a run; the only module that imports Ray."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from jaxdqn.actor_learner import worker_environment
from jaxdqn.errors import RunFailed, reject

_RESERVE_SECONDS = 20
_CHECK_SECONDS = 0.5
"""Interval between checks for a stop request while a call is awaited."""
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


class Resources(NamedTuple):
    """Resources of one worker."""

    cpus: float = 1.0
    gpus: float = 0.0


class RayCluster:
    """Ray cluster for one run, either started on this machine or already running.

    Args:
        required: resources of the workers that the run needs. They are reserved together, by a
            placement group.
        address: HOST:PORT of a running cluster, or ``auto``. None starts a cluster on this machine,
            which listens on the loopback interface only.
        optional: resources of the workers that start when the cluster has resources for them.
        check: called at least twice a second during ``wait`` and ``result``; an exception that it
            raises ends them.

    Raises:
        ValueError: if Ray is not installed, the address does not answer, the cluster has another
            version of Ray or Python, or it has too few resources.
    """

    def __init__(
        self,
        required: Sequence[Resources],
        address: str | None = None,
        optional: Sequence[Resources] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.ray = import_ray()
        self._address, self.check = address, check
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            cpus = _cpus_of_machine(required, optional)
            options |= {"num_cpus": cpus, "include_dashboard": False}
            # Without "local" Ray would join a cluster that another program started here.
            options |= {"address": "local", "_node_ip_address": "127.0.0.1"}
        else:
            options["address"] = address
        try:
            listening = _loopback_only(self.ray) if address is None else nullcontext()
            with _keeping_signal_handlers(), listening, warnings.catch_warnings():
                # JAX warns of every fork. Ray's forks are safe, because they exec at once.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                variables = worker_environment.of_cluster(address is None)
                self.ray.init(runtime_env={"env_vars": variables}, **options)
        except (ConnectionError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            reject("ray_address", address, f"a Ray cluster of version {self.ray.__version__} that "
                   f"this process can join: {reason[:400]}")  # fmt: skip
        try:
            self._check_resources(required)
            self._group = self._reserve(required)
        except BaseException:
            self.close()
            raise
        self._reserved = 0
        """Number of bundles of the placement group that have a worker."""

    def _check_resources(self, required: Sequence[Resources]) -> None:
        """Check that the cluster would be large enough if nothing else ran there."""
        present = self.ray.cluster_resources()
        for name, field in (("CPU", "cpus"), ("GPU", "gpus")):
            needed = sum(getattr(each, field) for each in required)
            if present.get(name, 0) < needed:
                reject(
                    "ray_address",
                    self._address,
                    f"a cluster with at least {needed:g} {name}s, for the {len(required)} workers; "
                    f"it has {present.get(name, 0):g}",
                )

    def _reserve(self, required: Sequence[Resources]) -> Any:
        """Reserve resources for all required workers at once."""
        bundles = [
            {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}) for each in required
        ]
        group = self.ray.util.placement_group(bundles, strategy="PACK")
        if not group.wait(_RESERVE_SECONDS):
            free = self.ray.available_resources()
            have = ", ".join(f"{free.get(name, 0):g} free {name}s" for name in ("CPU", "GPU"))
            workers = f"the {len(required)} workers"
            reject("ray_address", self._address, f"a cluster with free resources for {workers}; it "
                   f"has {have}, or its nodes are too small")  # fmt: skip
        return group

    def start(self, worker: type, *arguments: Any, resources: Resources | None = None) -> Any:
        """Start a worker in a new process, and return its handle.

        If the process dies, Ray restarts it, and the calls in flight fail.

        Args:
            worker: class of the worker.
            arguments: arguments of its constructor.
            resources: resources of an optional worker; None uses the next reserved resources.
        """
        options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}
        if resources is None:
            strategies = import_module("ray.util.scheduling_strategies")
            options["scheduling_strategy"] = strategies.PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._reserved
            )
            bundle = self._group.bundle_specs[self._reserved]
            resources = Resources(bundle["CPU"], bundle.get("GPU", 0.0))
            self._reserved += 1
        variables = worker_environment.of_worker(*resources)
        if variables:
            options["runtime_env"] = {"env_vars": variables}
        make = self.ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, **options)
        return make(worker).remote(*arguments)

    def release(self) -> None:
        """Make the reserved resources available to new workers, from the first bundle on."""
        self._reserved = 0

    def stop(self, worker: Any) -> None:
        """End the process of a worker without a restart."""
        self.ray.kill(worker)

    def put(self, value: Any) -> Any:
        """Return a reference to a value in the object store.

        Raises:
            RunFailed: if the object store is full.
        """
        try:
            return self.ray.put(value)
        except self._full as error:
            raise _store_full(error) from error

    def wait(self, futures: list[Any], timeout: float | None) -> list[Any]:
        """Return the futures that are ready; wait up to ``timeout`` seconds for the first.

        Wait at most half a second, so that the caller can do other work.
        """
        self.check()
        most = _CHECK_SECONDS if timeout is None else min(timeout, _CHECK_SECONDS)
        if not futures:
            time.sleep(most)
            return []
        if not self.ray.wait(futures, num_returns=1, timeout=most)[0]:
            return []
        return list(self.ray.wait(futures, num_returns=len(futures), timeout=0)[0])

    def result(self, future: Any) -> Any:
        """Return the result of a call.

        Raises:
            WorkerDied: if the process of the worker died.
            ObjectLost: if the result, or an argument of the call, was in the memory of a node that
                has left the cluster.
            RunFailed: if the call or the constructor of the worker raised an exception, or the
                object store is full.
        """
        exceptions = self.ray.exceptions
        try:
            return self._get(future)
        except exceptions.RayActorError as error:
            if error.actor_init_failed:
                reason = str(error).strip().splitlines()[-1]
                raise RunFailed(f"a worker could not start: {reason}") from error
            raise WorkerDied(str(error)) from error
        except exceptions.ObjectLostError as error:
            raise ObjectLost(str(error)) from error
        except self._full as error:
            raise _store_full(error) from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, self._full):
                raise _store_full(error.cause) from error
            # Ray raises the failure of an argument as the failure of the call.
            if isinstance(error.cause, exceptions.ObjectLostError | exceptions.RayActorError):
                raise ObjectLost(str(error.cause)) from error
            raise RunFailed(f"a worker failed: {error.cause!r}") from error
        except exceptions.RayError as error:
            raise RunFailed(f"Ray failed: {' '.join(str(error).split())[:400]}") from error

    def _get(self, future: Any) -> Any:
        """Wait for a result, and check for a stop request meanwhile."""
        while True:
            try:
                return self.ray.get(future, timeout=_CHECK_SECONDS)
            except self.ray.exceptions.GetTimeoutError:
                self.check()

    @property
    def _full(self) -> tuple[type[BaseException], ...]:
        """Exceptions that Ray raises if the object store is full."""
        exceptions = self.ray.exceptions
        return exceptions.ObjectStoreFullError, exceptions.OutOfDiskError

    def close(self) -> None:
        """End the workers; end a cluster that was started here."""
        self.ray.shutdown()


def _cpus_of_machine(required: Sequence[Resources], optional: Sequence[Resources]) -> int:
    """Return the CPUs of a cluster on this machine: enough for the required workers, and for the
    optional workers as many as the machine has."""
    needed = math.ceil(sum(each.cpus for each in required))
    wanted = math.ceil(sum(each.cpus for each in (*required, *optional)))
    return max(needed, min(wanted, os.cpu_count() or 1))


@contextmanager
def _loopback_only(ray: ModuleType) -> Iterator[None]:
    """Make a cluster that starts inside the ``with`` block listen on the loopback interface.

    On Linux Ray replaces 127.0.0.1 by the address of the machine, and then listens on every
    interface, unless this variable is 0. Ray's processes inherit it; this process has read it when
    it imported Ray.
    """
    constants = ray._private.ray_constants
    name = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = os.environ.get(name), constants.ENABLE_RAY_CLUSTER
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        if before[0] is None:
            del os.environ[name]
        else:
            os.environ[name] = before[0]
        constants.ENABLE_RAY_CLUSTER = before[1]


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that Ray replaces, because a run needs its handlers to stop."""
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


def _store_full(error: BaseException) -> RunFailed:
    reason = " ".join(str(error).split())[:300]
    return RunFailed(
        "the object store of Ray is full, and so is the disk to which it writes what does not fit: "
        f"lower block_rows or batch_size, or start Ray with more object_store_memory: {reason}"
    )


class WorkerDied(Exception):
    """The process of a worker died during a call."""


class ObjectLost(Exception):
    """The result or an argument of a call was lost with the node that held it."""
