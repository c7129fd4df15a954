"""Runs that join a running Ray cluster of several nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdqn

SCRIPT = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=2)
command = [sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray", "--replay",
           "prioritized", "--ray-address", cluster.address, "--total-rows", "20000"]
for actors in ("2", "4"):
    done = subprocess.run([*command, "--actors", actors, "--out", f"{sys.argv[1]}/{actors}"],
                          capture_output=True, text=True, timeout=100)
    print(actors, done.returncode, done.stderr)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_run_over_two_nodes_needs_a_cpu_for_each_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    root = str(Path(jaxdqn.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert "2 0 " in done.stdout, done.stdout + done.stderr
    assert "must be a cluster with at least 5 CPUs, for the 5 workers; it has 3" in done.stdout
    assert (tmp_path / "2" / "summary.json").exists()
    assert not (tmp_path / "4" / "summary.json").exists()
