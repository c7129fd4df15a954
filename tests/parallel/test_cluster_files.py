"""The Slurm script and the Kubernetes manifest of the documentation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxdqn.cli import run
from jaxdqn.cli.engine import make_engine
from jaxdqn.cli.launch import supervisor
from jaxdqn.cli.launch.rendezvous import ProcessSpec
from tests.processes import ROOT, SHORT


@pytest.fixture
def slurm_substitutes(tmp_path):
    """Write substitutes for Slurm's commands; return an environment with them on the path."""
    directory = tmp_path / "bin"
    directory.mkdir()
    scripts = {
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol; [ "$1" = show ] && echo 127.0.0.1 || true',
        "srun": (
            '[[ "$1" = --kill-on-bad-exit=1 ]] && shift\n'
            'for i in 0 1; do SLURM_PROCID=$i "$@" & all+=($!); done\n'
            'for one in "${all[@]}"; do wait "$one" || code=$?; done; exit "${code:-0}"'
        ),
        "jaxdqn": f'exec {sys.executable} -m jaxdqn "$@"',
    }
    for name, text in scripts.items():
        (directory / name).write_text(f"#!/bin/bash\n{text}\n")
        (directory / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{directory}:{os.environ['PATH']}",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "jaxdqn",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
    }


def test_the_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", ROOT / "docs/cluster/slurm.sh"], check=True)


@pytest.mark.slow
def test_the_slurm_script_runs_and_resumes(slurm_substitutes, port, tmp_path):
    """The first job runs out of time and is queued again; the second ends the run."""
    out = tmp_path / "run"
    environment = {**slurm_substitutes, "OUT": str(out), "PORT": str(port)}
    script = ["bash", ROOT / "docs/cluster/slurm.sh", *SHORT, "--virtual-devices", "2"]
    # More rows than fit into the time, which is enough to compile; any policy solves it.
    script += ["--total-rows", "1000000000", "--solve-return", "8"]
    rows = []
    for more in (["--max-seconds", "40", "--stop-when", "never"], ["--stop-when", "solved"]):
        done = subprocess.run(
            [*script, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["processes"], summary["devices"]) == (2, 4)
        assert summary["interrupted"] == (rows == [])
        rows.append(summary["rows"])
    assert 0 < rows[0] <= rows[1]
    calls = (tmp_path / "scontrol").read_text().splitlines()
    assert calls == ["show hostnames node[1-2]", "requeue 4242", "show hostnames node[1-2]"]


def test_the_manifest_is_consistent_and_its_command_is_valid():
    manifest = yaml.safe_load((ROOT / "docs/cluster/jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = manifest["spec"]
    assert spec["network"]["enableDNSHostnames"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry for entry in container["env"]}
    # Pods are named NAME-REPLICATEDJOB-JOB-POD, under the network's subdomain.
    name, subdomain = manifest["metadata"]["name"], spec["network"]["subdomain"]
    coordinator = variables["COORDINATOR"]["value"]
    (port,) = [entry["containerPort"] for entry in container["ports"]]
    assert coordinator == f"{name}-{replicated['name']}-0-0.{subdomain}:{port}"
    index = variables["PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job["completionMode"] == "Indexed"
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert container["command"] == ["jaxdqn", "run"]
    values = {"$(COORDINATOR)": coordinator, "$(PROCESS_ID)": "1"}
    argv = [values.get(argument, argument) for argument in container["args"]]
    _, flags = run.read_flags(argv)
    config = run.config_from(flags)
    process = supervisor.process_spec(
        flags.coordinator, flags.num_processes, flags.process_id, flags.multi_host
    )
    assert process == ProcessSpec(coordinator, 2, 1)
    assert job["parallelism"] == job["completions"] == process.num_processes
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert config.devices == process.num_processes * gpus
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert flags.resume
    assert flags.out.startswith(mounts["runs"] + "/")
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_the_ray_job_is_consistent_and_its_command_is_valid():
    manifest = yaml.safe_load((ROOT / "docs/cluster/rayjob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    cluster = manifest["spec"]["rayClusterSpec"]
    command = manifest["spec"]["entrypoint"].split()
    assert command[:2] == ["jaxdqn", "run"]
    _, flags = run.read_flags(command[2:])
    config = run.config_from(flags)
    engine = make_engine(flags)
    assert engine is not None
    assert (engine.ray_address, flags.resume) == ("auto", True)
    least, most = engine.actors
    assert config.num_envs % most == 0
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # the learner has the head node for itself
    (container,) = head["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert flags.out.startswith(mounts["runs"] + "/")
    assert {each["name"] for each in head["template"]["spec"]["volumes"]} == set(mounts)
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    (worker,) = workers["template"]["spec"]["containers"]
    assert worker["image"] == container["image"]
    cpus = int(worker["resources"]["requests"]["cpu"])
    assert workers["minReplicas"] * cpus >= least + engine.replay_shards
    assert workers["maxReplicas"] * cpus >= most + engine.replay_shards


def test_the_cluster_file_agrees_with_the_schema_of_ray():
    ray = pytest.importorskip("ray")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "docs/cluster/ray.yaml").read_text())
    jsonschema.validate(cluster, schema)
    head, worker = (cluster[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert "--port=6379" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
