"""Runs on Ray through the command line."""

from __future__ import annotations

import ipaddress
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jaxdqn.actor_learner.engine import RayEngine
from jaxdqn.cli.engine import actors_of
from jaxdqn.cli.outcome import outcome
from jaxdqn.config.presets import preset

COMMAND = (sys.executable, "-m", "jaxdqn", "run", "cartpole", "--engine", "ray")
APEX = (*COMMAND, "--replay", "prioritized", "--actors", "2")


def steps_allowed(rows: int, name: str = "cartpole") -> float:
    """Return the gradient steps that the replay ratio of a preset allows for rows of a run."""
    config = preset(name)
    after_warmup = rows - config.warmup_rows
    return after_warmup * config.gradient_steps_per_iteration / config.rows_per_iteration


def workers_of(process: psutil.Process, name: str) -> list[psutil.Process]:
    """Return the processes of Ray's workers of a class, below ``process``."""
    found = []
    for child in process.children(recursive=True):
        try:
            if any(f"ray::{name}" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for_metrics(file: Path, lines: int, seconds: float) -> None:
    """Wait until a run has recorded that many chunks."""
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text().count("\n") >= lines):
        assert time.monotonic() < deadline, "the run records no more chunks"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "ray"), "replay='uniform': must be 'prioritized' with engine='ray'"),
        (("--actors", "2"), "actors='2': must be left out without engine='ray'"),
        (("--server-mode", "sync"), "server_mode='sync': must be left out without engine='ray'"),
        (
            ("--engine", "ray", "--replay", "prioritized", "--compression", "int8"),
            "compression='int8': must be 'none' with engine='ray' without server_mode",
        ),
    ],
)
def test_flags_that_do_not_fit_are_rejected(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    from jaxdqn.cli.run import main

    assert main(["cartpole", *arguments, "--out", "unused-by-this-test"]) != 0
    assert message in capsys.readouterr().err


def test_numbers_of_actors_are_read() -> None:
    assert (actors_of("3"), actors_of("2..8"), actors_of([2, 4])) == (3, (2, 8), (2, 4))
    with pytest.raises(ValueError, match=r"actors='2-8': must be a number, or LEAST..MOST"):
        actors_of("2-8")
    with pytest.raises(ValueError, match=r"actors=\(4, 2\): must be at least 1, or a range"):
        RayEngine((4, 2))


def test_the_record_of_the_engine_has_the_arguments_that_differ_from_the_defaults() -> None:
    assert RayEngine(2).record() == {"engine": "ray", "actors": 2, "replay_shards": 1}
    record = RayEngine((2, 4), parameters_every=4, cpus_per_actor=2).record()
    assert record["actors"] == [2, 4]
    assert (record["parameters_every"], record["cpus_per_actor"]) == (4, 2)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("actors", "limited by the actors: the learner waits for the actors"),
        ("learner", "limited by the learner: the actors wait for the learner"),
    ],
)
def test_the_outcome_of_a_run_names_the_part_that_limits_it(part: str, line: str) -> None:
    names = ("eval_return_mean", "best_eval_return_mean", "eval_episodes", "env_steps", "rows",
             "gradient_steps", "train_seconds", "eval_seconds", "compile_seconds",
             "env_steps_per_second", "gradient_steps_per_second")  # fmt: skip
    summary: dict[str, Any] = {name: 1.0 for name in names} | {
        "solve_return": None,
        "interrupted": False,
        "eval_epsilon": 0.0,
        "skipped_gradient_steps": 0,
    }
    assert "limited by" not in outcome(summary)
    assert outcome(summary | {"limited_by": part}).splitlines()[-1] == line


def test_the_engine_rejects_what_it_cannot_run() -> None:
    pytest.importorskip("ray")
    config = preset("per")
    with pytest.raises(ValueError, match=r"actors=3: must be a divisor of num_envs=32"):
        RayEngine(3).configure(config, {})
    with pytest.raises(ValueError, match=r"replay_shards=2: must be from 1 to actors=1"):
        RayEngine(1, 2)
    with pytest.raises(ValueError, match=r"ray_address='127.0.0.1:1': must be the address"):
        RayEngine(2, ray_address="127.0.0.1:1").configure(config, {})
    with pytest.raises(ValueError, match=r"learners=3: must be a divisor of batch_size=\d+ with"):
        RayEngine(2, learners=3, server_mode="sync").configure(config, {})
    with pytest.raises(ValueError, match=r"network=.*: must be left out with engine='ray'"):
        RayEngine(2).configure(config, {"network": "mine:network"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learners": 2}, "learners=2: must be 1 without server_mode"),
        ({"learners": 0}, "learners=0: must be at least 1"),
        ({"block_rows": 0}, "block_rows=0: must be at least 1"),
        ({"cpus_per_actor": 1.5}, "cpus_per_actor=1.5: must be above 0, and a whole number above"),
        ({"gpus_per_learner": 0.5}, "gpus_per_learner=0.5: must be left out without server_mode"),
        (
            {"server_mode": "sync", "gpus_per_learner": 2},
            "gpus_per_learner=2: must be at most 1: a learner has one device",
        ),
        ({"parameters_every": 0}, "parameters_every=0: must be at least 1"),
        ({"initial_priorities": "one"}, "initial_priorities='one': must be 'actor' or 'max'"),
        ({"server_mode": "both"}, "server_mode='both': must be 'sync' or 'async'"),
        (
            {"server_mode": "sync", "max_staleness": 1},
            "max_staleness=1: must be left out without server_mode='async'",
        ),
        ({"server_mode": "async", "max_staleness": -1}, "max_staleness=-1: must be at least 0"),
        (
            {"server_mode": "sync", "staleness_discount": 1.0},
            "staleness_discount=1.0: must be left out without server_mode='async'",
        ),
        ({"server_mode": "sync", "compression": "zip"}, "compression='zip': must be one of none"),
    ],
)
def test_options_of_the_parameter_server_are_checked(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RayEngine(2, **arguments)


SERVERS = {
    "sync": ("--server-mode", "sync"),
    "async": ("--server-mode", "async"),
    "compressed": ("--server-mode", "sync", "--compression", "int8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_a_parameter_server_with_two_learners_solves_cartpole(server: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    done = subprocess.run(
        [*APEX, "--learners", "2", *SERVERS[server], "--stop-when", "solved", "--out", str(out)],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["solved"]
    mode = SERVERS[server][1]
    expected = f"ray, 2 actors, 1 shard, 2 learners, parameter server ({mode})"
    assert summary["mapping"] == expected
    # The replay ratio of the preset, up to two groups.
    allowed = steps_allowed(summary["rows"])
    assert allowed - 64 <= summary["gradient_steps"] <= allowed
    goodput = summary["goodput"]
    assert 0 < goodput["share"] < 1
    assert sum(goodput["seconds"].values()) == pytest.approx(goodput["wall_seconds"])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    staleness = [record["gradient_staleness"] for record in records]
    assert summary["gradients_dropped"] == 0
    # With async the other learner sends about one gradient while a learner computes one.
    assert 0.1 < max(staleness) < 4 if mode == "async" else max(staleness) == 0
    for learner in (0, 1):
        assert records[-1][f"learner_{learner}_gradients_per_second"] > 0


@pytest.mark.slow
def test_gradients_beyond_the_greatest_staleness_are_dropped(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    options = ("--max-staleness", "0", "--staleness-discount", "1", "--compression", "bfloat16")
    done = subprocess.run(
        [*APEX, "--learners", "2", "--server-mode", "async", *options, "--total-rows", "20000",
         "--out", str(out)],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["gradients_dropped"] > 10
    assert 0 < records[-1]["gradients_dropped_share"] < 1
    # Dropped gradients are not gradient steps, and the replay ratio holds without them.
    allowed = steps_allowed(summary["rows"])
    assert allowed - 64 <= summary["gradient_steps"] <= allowed
    assert summary["gradient_steps"] == records[-1]["gradient_steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cartpole", "ape-x"])
def test_apex_with_two_actors_solves_cartpole(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    command = [name if word == "cartpole" else word for word in APEX]
    done = subprocess.run(
        [*command, "--stop-when", "solved", "--out", str(out)],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["solved"]
    assert summary["mapping"] == "ray, 2 actors, 1 shard, 1 learner"
    # The replay ratio of the preset, up to one block and one group, and the difference is reported.
    allowed = steps_allowed(summary["rows"], name)
    assert allowed - 64 <= summary["gradient_steps"] <= allowed
    assert 0 <= summary["gradient_steps_owed"] <= allowed - summary["gradient_steps"]
    assert f"limited by the {summary['limited_by']}: the " in done.stdout
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["actor_0_rows_per_second"] > 0
    assert last["actor_1_rows_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("server", [(), ("--learners", "2", "--server-mode", "sync")])
def test_a_run_survives_killed_workers_and_resumes_after_a_stop(
    server: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    options = ["--replay-shards", "2", *server, "--stop-when", "never", "--out", str(out)]
    kinds = ("ActorWorker", "ShardWorker", *(["LearnerWorker"] if server else []))
    run = subprocess.Popen(
        [*APEX, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        process = psutil.Process(run.pid)
        wait_for_metrics(out / "metrics.jsonl", 1, 90)
        for name in kinds:
            workers_of(process, name)[0].send_signal(signal.SIGKILL)
            seen = (out / "metrics.jsonl").read_text().count("\n")
            wait_for_metrics(out / "metrics.jsonl", seen + 3, 60)
        below = process.children(recursive=True)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 0, run.stderr and run.stderr.read()
        _, alive = psutil.wait_procs(below, timeout=15)
        assert not alive
    finally:
        run.kill()
        run.communicate()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"]
    assert summary["worker_restarts"] >= len(kinds)
    rows = summary["rows"]
    resume = (sys.executable, "-m", "jaxdqn", "run", "--resume", "--out", str(out))
    again = subprocess.run(
        [*resume, "--total-rows", str(rows + 30_000)],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    resumed = json.loads((out / "summary.json").read_text())
    assert resumed["rows"] > rows
    assert resumed["mapping"] == summary["mapping"]
    assert resumed["gradient_steps"] > summary["gradient_steps"]


@pytest.mark.slow
def test_a_cluster_of_a_run_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    run = subprocess.Popen(
        [*APEX, "--stop-when", "never", "--eval-every", "0", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_metrics(out / "metrics.jsonl", 1, 250)
        process = psutil.Process(run.pid)
        listeners: dict[str, Any] = {}
        for each in (process, *process.children(recursive=True)):
            try:
                name, sockets = each.name(), each.net_connections(kind="inet")
            except psutil.Error:
                continue
            found = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
            listeners |= {f"{name} {one.port}": ipaddress.ip_address(one.ip) for one in found}
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 0
    finally:
        run.kill()
        run.communicate()
    assert len(listeners) > 3  # the control service, the node, and the workers
    open_to_others = {
        name: str(address)
        for name, address in listeners.items()
        if not (getattr(address, "ipv4_mapped", None) or address).is_loopback
    }
    assert not open_to_others


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "jaxdqn\[ray\]"'):
        RayEngine(2).configure(preset("per"), {})
