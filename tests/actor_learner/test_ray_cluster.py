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
from jaxdqn.actor_learner import ray_cluster
from jaxdqn.errors import RunFailed

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
                      capture_output=True, text=True, timeout=100)
print("alone", done.returncode, done.stderr)
for actors in ("2", "4"):
    done = subprocess.run([*command, "--actors", actors, "--out", f"{sys.argv[1]}/{actors}"],
                          capture_output=True, text=True, timeout=100)
    print(actors, done.returncode, done.stderr)
import ray
from jaxdqn.actor_learner.ray_cluster import RayCluster, Resources, check_address
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
    deadline = time.monotonic() + 150
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


def outcome_of(script: str, directory: Path) -> str:
    """Run a script in a new process, and return its output."""
    root = str(Path(jaxdqn.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_an_address_at_which_something_else_listens_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "_ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"does not answer within 1 s"):
            ray_cluster.check_address(address)


def test_a_full_object_store_is_one_clear_failure() -> None:
    ray = pytest.importorskip("ray")
    full = ray.exceptions.ObjectStoreFullError("no room for 9 bytes")

    def fail(value: Any) -> Any:
        raise value

    cluster = object.__new__(ray_cluster.RayCluster)
    cluster.ray = SimpleNamespace(put=fail, get=fail, exceptions=ray.exceptions)  # type: ignore
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
