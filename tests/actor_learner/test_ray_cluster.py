"""Runs that join a running Ray cluster of several nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jaxdqn
from jaxdqn.actor_learner import ray_address, ray_cluster
from jaxdqn.errors import RunFailed, RunStopped

TOO_FEW = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=2)
command = [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", "--replay",
           "prioritized", "--ray-address", cluster.address, "--total-rows", "20000"]
# Without an address a run starts a new cluster beside this one.
alone = [word for word in command if word not in ("--ray-address", cluster.address)]
done = subprocess.run([*alone, "--actors", "1", "--out", f"{sys.argv[1]}/alone"],
                      capture_output=True, text=True, timeout=150)
print("alone", done.returncode, done.stderr)
for actors in ("2", "4"):
    done = subprocess.run([*command, "--actors", actors, "--out", f"{sys.argv[1]}/{actors}"],
                          capture_output=True, text=True, timeout=150)
    print(actors, done.returncode, done.stderr)
import ray
from jaxdqn.actor_learner.ray_address import check_address
from jaxdqn.actor_learner.ray_cluster import RayCluster, Resources
check_address(cluster.address)
ray.__version__ = "1.2.3"
try:
    RayCluster([Resources()], cluster.address)
except ValueError as error:
    print(error)
cluster.shutdown()
"""


ELASTIC = """
import json, pathlib, signal, subprocess, sys, time
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
out = pathlib.Path(sys.argv[1])
run = subprocess.Popen(
    [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", "--replay",
     "prioritized", "--ray-address", cluster.address, "--total-rows", "5000000", "--eval-every",
     "0", "--actors", "2..4", "--out", str(out)],
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def wait_for(actors):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and run.poll() is None:
        file = out / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        if lines and json.loads(lines[-1])["actors"] == actors:
            print(actors, json.loads(lines[-1])["actor_3_rows_per_second"] > 0)
            return
        time.sleep(0.1)
    print("no record with", actors, "actors")

try:
    wait_for(2)
    node = cluster.add_node(num_cpus=2)
    wait_for(4)
    cluster.remove_node(node)
    wait_for(2)
    run.send_signal(signal.SIGTERM)
    print("exit", run.wait(60), run.stderr.read())
finally:
    run.kill()
    cluster.shutdown()
"""


LEAVES = """
import json, pathlib, signal, subprocess, sys, time
import psutil
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
node = cluster.add_node(num_cpus=2)
out = pathlib.Path(sys.argv[1])
run = subprocess.Popen(
    [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", "--replay",
     "prioritized", "--ray-address", cluster.address, "--total-rows", "50000000", "--eval-every",
     "0", "--actors", "2..4", "--block-rows", "3200", "--replay-capacity", "102400",
     "--log-every", "12800", "--out", str(out)],
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def records():
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

def wait_for(condition):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and run.poll() is None:
        if condition(records()):
            return print("yes")
        time.sleep(0.1)
    print("no", records()[-1:])

try:
    wait_for(lambda found: found and found[-1]["actors"] == 4)
    # The shard reads no blocks until the node with two of the actors, and their blocks, has left.
    shard = next(child for child in psutil.Process().children(recursive=True)
                 if any("ray::ShardWorker" in word for word in child.cmdline()))
    shard.send_signal(signal.SIGSTOP)
    time.sleep(5)
    cluster.remove_node(node)
    time.sleep(2)
    shard.send_signal(signal.SIGCONT)
    seen = len(records())
    wait_for(lambda found: len(found) > seen + 3 and found[-1]["actors"] == 2)
    run.send_signal(signal.SIGTERM)
    print("exit", run.wait(60), run.stderr.read())
finally:
    run.kill()
    cluster.shutdown()
"""


MISSING = """
import pathlib, signal, subprocess, sys, time
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
out = pathlib.Path(sys.argv[1])
errors = out.with_name("errors.txt")
run = subprocess.Popen(
    [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", "--replay",
     "prioritized", "--ray-address", cluster.address, "--total-rows", "50000000", "--eval-every",
     "0", "--actors", "2", "--out", str(out)],
    stdout=subprocess.DEVNULL, stderr=errors.open("w"))

def wait_for(condition):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and run.poll() is None and not condition():
        time.sleep(0.1)

try:
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    cluster.remove_node(node)
    wait_for(lambda: "the run waits for" in errors.read_text())
    time.sleep(2)
    started = time.monotonic()
    run.send_signal(signal.SIGTERM)
    print("exit", run.wait(120), time.monotonic() - started < 90)
    print(errors.read_text())
finally:
    run.kill()
    cluster.shutdown()
"""


BROKEN = """
from jaxdqn.actor_learner.ray_cluster import RayCluster, Resources

class Broken:
    def __init__(self):
        raise ValueError("no room")

    def add(self):
        return 0

cluster = RayCluster([Resources()])
try:
    cluster.result(cluster.start(Broken).add.remote())
finally:
    cluster.close()
"""


def outcome_of(script: str, directory: Path) -> str:
    """Run a script in a new process, and return its output."""
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(Path(jaxdqn.__file__).parents[1]), *([given] if given else [])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_an_address_at_which_something_else_listens_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_address, "_ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"does not answer within 1 s"):
            ray_address.check_address(address)


def failing_cluster(ray: Any) -> Any:
    """Return a cluster whose calls raise their argument."""

    def fail(value: Any, timeout: float | None = None) -> Any:
        raise value

    cluster = object.__new__(ray_cluster.RayCluster)
    cluster.ray = SimpleNamespace(put=fail, get=fail, exceptions=ray.exceptions)  # type: ignore
    return cluster


def test_a_constructor_that_raises_ends_the_run_with_its_cause() -> None:
    ray = pytest.importorskip("ray")
    cause = ray.exceptions.RayTaskError("init", "Traceback\nValueError: no room", ValueError("no"))
    cluster = failing_cluster(ray)
    with pytest.raises(RunFailed, match="a worker could not start: ValueError: no room"):
        cluster.result(ray.exceptions.ActorDiedError(cause))
    with pytest.raises(ray_cluster.WorkerDied):
        cluster.result(ray.exceptions.ActorDiedError())


def test_an_object_that_left_with_its_node_is_no_failure_of_the_run() -> None:
    ray = pytest.importorskip("ray")
    exceptions = ray.exceptions
    lost = exceptions.ObjectLostError("0" * 56, None, "")
    cluster = failing_cluster(ray)
    # As the result of the call, and as an argument of it.
    for error in (
        lost,
        exceptions.RayTaskError("add", "traceback", lost),
        exceptions.RayTaskError("add", "traceback", exceptions.ActorDiedError()),
        exceptions.ObjectFetchTimedOutError("0" * 56, None, ""),
    ):
        with pytest.raises(ray_cluster.ObjectLost):
            cluster.result(error)
    with pytest.raises(RunFailed, match="a worker failed: ValueError"):
        cluster.result(exceptions.RayTaskError("add", "traceback", ValueError("no")))
    with pytest.raises(RunFailed, match="Ray failed: "):
        cluster.result(exceptions.RaySystemError("raylet"))


def test_a_stop_request_ends_the_wait_for_a_result() -> None:
    ray = pytest.importorskip("ray")
    cluster = failing_cluster(ray)
    checks = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            raise RunStopped("SIGTERM")

    cluster.check = check
    with pytest.raises(RunStopped):
        cluster.result(ray.exceptions.GetTimeoutError())
    checks.extend([1] * 8)
    assert cluster.wait([], 0.01) == []


def test_a_full_object_store_is_one_clear_failure() -> None:
    ray = pytest.importorskip("ray")
    full = ray.exceptions.ObjectStoreFullError("no room for 9 bytes")

    cluster = failing_cluster(ray)
    of_worker = ray.exceptions.RayTaskError("draw", "traceback", full)
    for call, error in ((cluster.put, full), (cluster.result, full), (cluster.result, of_worker)):
        with pytest.raises(RunFailed, match="the object store of Ray is full, and so is the disk"):
            call(error)


@pytest.mark.slow
def test_actors_join_with_a_node_and_leave_with_it(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outcome = outcome_of(ELASTIC, tmp_path / "run")
    assert "2 False\n4 True\n2 False\nexit 0" in outcome, outcome
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mapping"] == "ray, 2 to 4 actors, 1 shard, 1 learner"


@pytest.mark.slow
def test_a_run_over_two_nodes_needs_a_cpu_for_each_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outcome = outcome_of(TOO_FEW, tmp_path)
    assert "alone 0 " in outcome, outcome
    assert "2 0 " in outcome, outcome
    assert "The cluster was started with: Ray: 2." in outcome
    assert "must be a cluster with at least 5 CPUs, for the 5 workers; it has 3" in outcome
    assert (tmp_path / "2" / "summary.json").exists()
    assert not (tmp_path / "4" / "summary.json").exists()


@pytest.mark.slow
def test_a_node_that_leaves_takes_only_the_rows_on_their_way(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outcome = outcome_of(LEAVES, tmp_path / "run")
    assert "yes\nyes\nexit 0" in outcome, outcome
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["ray_rows"]
    assert counts["lost"] > 0
    assert counts["duplicated"] == 0
    on_their_way = counts["on_their_way"]
    assert counts["taken"] == counts["stored"] + counts["lost"] + on_their_way


@pytest.mark.slow
def test_a_run_whose_worker_cannot_return_says_so_and_can_be_stopped(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outcome = outcome_of(MISSING, tmp_path / "run")
    assert "exit 0 True" in outcome, outcome
    assert outcome.count("warning: the run waits for ") == 1, outcome
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ended_by"] == "SIGTERM"


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_run(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outcome = outcome_of(BROKEN, tmp_path)
    assert "RunFailed: a worker could not start: ValueError: no room" in outcome, outcome


def test_the_variable_of_ray_for_the_loopback_interface_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray")
    constants = ray._private.ray_constants
    name = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    for given in (None, "1"):
        if given is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, given)
        before = constants.ENABLE_RAY_CLUSTER
        with ray_cluster._loopback_only(ray):
            assert (os.environ[name], constants.ENABLE_RAY_CLUSTER) == ("0", False)
        assert (os.environ.get(name), constants.ENABLE_RAY_CLUSTER) == (given, before)
