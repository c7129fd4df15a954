"""Failures of processes during a run, and runs that are rejected."""

import re
import signal

import pytest

from tests.processes import ENDLESS, SHORT, await_checkpoint, wait_for, worker_of


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_which_name_it(pair, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    worker_of(processes[1]).kill()
    codes, lines, seconds = wait_for(processes)
    assert codes == [1, 1]
    assert seconds < 30
    assert re.match(r"error: process 1 on \S+ was killed by SIGKILL", lines[0])
    assert "process 0 on" in lines[0]
    assert "cannot continue without it; start all processes again with --resume" in lines[0]
    assert re.match(r"error: process 1 on \S+ was killed by SIGKILL", lines[1])


@pytest.mark.slow
@pytest.mark.parametrize("which", ["worker", "parent"])
def test_a_killed_coordinator_ends_the_others_which_name_it(pair, tmp_path, which):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    worker = worker_of(processes[0])
    (worker if which == "worker" else processes[0]).kill()
    codes, lines, seconds = wait_for(processes)
    assert seconds < 30
    assert codes == [1 if which == "worker" else -signal.SIGKILL, 1]
    what = "was killed by SIGKILL" if which == "worker" else "disconnected"
    assert re.match(rf"error: process 0 on \S+ {what}", lines[1])
    # A worker does not outlive its parent.
    worker.wait(timeout=10)


@pytest.mark.slow
def test_a_process_that_hangs_is_detected_by_its_heartbeat(pair, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run", "--heartbeat-seconds", 5)
    await_checkpoint(tmp_path / "run", processes)
    worker = worker_of(processes[1])
    worker.suspend()
    codes, lines, seconds = wait_for(processes[:1])
    assert codes == [1]
    assert seconds < 40
    assert re.match(r"error: process 1 on \S+ has not answered for 5 s", lines[0])
    worker.kill()


@pytest.mark.slow
def test_additional_processes_do_not_disturb_a_run(pair, start, port, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    peers = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2]
    late = [
        start(*ENDLESS, *peers, "--process-id", index, "--initialization-seconds", 2)
        for index in range(2)
    ]
    codes, lines, seconds = wait_for(late)
    assert codes == [1, 1]
    assert seconds < 12
    assert "must be free" in lines[0]
    assert "has the run already started?" in lines[1]
    assert [process.poll() for process in processes] == [None, None]


# Divisible by three devices.
UNEVEN = ["--num-envs", "30", "--batch-size", "126", "--replay-capacity", "102390"]
REJECTED = {
    "another seed": ([[], ["--seed", "3"]], [1, 2], "seed=3: must be 0, as in process 0"),
    "too few devices": ([["--devices", "2"]] * 2, [2, 2], "devices=2: must be 4"),
    "population": ([["--num-seeds", "4"]] * 2, [2, 2], "num_seeds=4: must be 1 with 2 processes"),
    "pmap": ([["--mapping", "pmap"]] * 2, [2, 2], "mapping='pmap': must be 'shard_map'"),
    "uneven": (
        [["--devices", "3", *UNEVEN], ["--devices", "3", *UNEVEN, "--virtual-devices", "1"]],
        [2, 2],
        "devices=3: must be equal in all processes, but there are 2 in process 0, 1 in process 1",
    ),
    "directory in use": ([[]] * 2, [2, 2], "must be a new or an empty directory"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REJECTED)
def test_an_invalid_run_is_rejected_by_all_processes(case, start, port, tmp_path):
    more, expected, part = REJECTED[case]
    out = tmp_path / "run"
    if case == "directory in use":
        out.mkdir()
        (out / "file").touch()
    processes = [
        start(
            *SHORT, "--virtual-devices", 2, "--devices", 4, *more[index], "--out", out,
            "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", index,
        )
        for index in range(2)
    ]  # fmt: skip
    codes, lines, seconds = wait_for(processes)
    assert codes == expected
    assert seconds < 60
    assert all(part in line for line in lines)


def slurm(index, port):
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_in_a_detected_cluster_a_killed_worker_ends_the_others(start, port, tmp_path, victim):
    flags = [*ENDLESS, "--virtual-devices", 2, "--devices", 4, "--multi-host"]
    processes = [
        start(*flags, "--out", tmp_path / "run", **slurm(index, port)) for index in range(2)
    ]
    await_checkpoint(tmp_path / "run", processes)
    worker_of(processes[victim]).kill()
    codes, lines, seconds = wait_for(processes)
    assert codes == [1, 1]
    assert seconds < 40
    what = "disconnected" if victim == 0 else "has not answered for 10 s"
    assert re.match(rf"error: process {victim} on \S+ ?.*{what}", lines[1 - victim])


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_in_a_detected_cluster_a_missing_process_ends_the_others(start, port, index):
    flags = [*SHORT, "--multi-host", "--initialization-seconds", 8]
    codes, lines, seconds = wait_for([start(*flags, **slurm(index, port))])
    assert codes == [1]
    assert seconds < 18
    assert "not all processes joined the coordinator within 8 s" in lines[0]


def test_multi_host_without_a_cluster_is_rejected(start):
    codes, lines, _ = wait_for([start(*SHORT, "--multi-host")])
    assert codes == [2]
    assert lines[0].startswith("error: multi_host=True: must run in a cluster that JAX detects")
