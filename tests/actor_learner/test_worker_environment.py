"""Environment variables of workers."""

from __future__ import annotations

import os

import pytest
from jaxlib.xla_client import generate_pjrt_gpu_plugin_options

from jaxdqn.actor_learner import ray_cluster
from jaxdqn.actor_learner.ray_cluster import Resources
from jaxdqn.actor_learner.worker_environment import of_cluster, of_worker


def test_a_learner_on_a_gpu_starts_whatever_memory_fraction_the_run_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A worker on this machine inherits the variables of the run; either name may be set there.
    for inherited in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        with monkeypatch.context() as patch:
            patch.setenv(inherited, "0.3")
            for name, value in of_worker(1.0, 0.5).items():
                patch.setenv(name, value)
            assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.45
            assert not os.environ["JAX_PLATFORMS"]


def test_an_actor_with_several_cpus_has_as_many_threads() -> None:
    assert of_worker(1.0, 0.0) == {}
    assert of_worker(4.0, 0.0) == {"NPROC": "4"}


def test_workers_on_this_machine_import_the_source_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    path = of_cluster(True)["PYTHONPATH"].split(os.pathsep)
    assert os.path.isfile(os.path.join(path[0], "jaxdqn", "__init__.py"))
    assert path[1] == "elsewhere"
    assert of_cluster(False) == {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(("cores", "cpus"), [(4, 4), (16, 9), (1, 3)])
def test_a_cluster_on_this_machine_declares_no_more_cpus_than_cores_for_optional_actors(
    cores: int, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    # A shard and 2 to 8 actors. The run needs the first three, even on a smaller machine.
    assert ray_cluster._cpus_of_machine([Resources()] * 3, [Resources()] * 6) == cpus
