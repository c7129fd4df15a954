"""Commands that repeat a run: parsed, they give the configuration, the parts and the engine."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from jaxdqn.actor_learner.engine import RayEngine
from jaxdqn.cli import run as command
from jaxdqn.cli.engine import make_engine
from jaxdqn.config import loss_registry
from jaxdqn.config.config import replace, to_dict
from jaxdqn.config.presets import preset
from jaxdqn.monitoring.reproduce import lines_of
from jaxdqn.monitoring.run_files import read_run
from jaxdqn.storage.engine_record import write_engine
from jaxdqn.storage.jsonl import read_lines, write_json
from jaxdqn.storage.parts import write_parts
from tests.docs.pages import ROOT
from tests.own_parts import SOURCE
from tests.toys import tiny

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NPROC": "1"}
ELSEWHERE = "/home/user/my project"


def write_run(path, config=None, *, parts=(), engine=None, **identity):
    """Write the files of a run that was started with references to parts and an engine."""
    path.mkdir()
    write_json(path / "config.json", to_dict(config or tiny()))
    write_parts(path, dict(parts))
    write_engine(path, engine)
    write_json(path / "start.json", {"preset": None, "processes": 1, **identity})
    return path


def reference(text, directory=ELSEWHERE):
    return {"reference": text, "directory": directory}


def parsed(run, monkeypatch):
    """Parse the command of a run where its configuration is in the current directory."""
    monkeypatch.chdir(run.parent)
    (run.parent / f"{run.name}.json").write_bytes((run / "config.json").read_bytes())
    *comments, line = lines_of(read_run(run))
    assert all(comment.startswith("# ") for comment in comments)
    words = shlex.split(line)
    assert words[:2] == ["jaxdqn", "run"]
    return command._checked(words[2:])


@pytest.mark.parametrize(
    "parts",
    [
        {"network": "own.py:net"},
        {"environment": "river.py:make", "optimizer": "mine.parts:Nested.sgd"},
        {"replay": "mine:replay", "explore": "mine:explore", "loss": "mine:loss"},
        {"learning": "mine:learning", "agent": "mine:agent"},
    ],
)
def test_the_command_names_the_own_parts(tmp_path, monkeypatch, parts):
    record = {name: reference(text) for name, text in parts.items()}
    run = write_run(tmp_path / "a run", replace(tiny(), seed=7, n_step=3), parts=record)
    again = parsed(run, monkeypatch)
    assert again.parts == parts
    assert again.config == replace(tiny(), seed=7, n_step=3)
    assert again.out.parts == ("again", "a run")
    assert f"# in {ELSEWHERE}, which has the own parts of a run" in lines_of(read_run(run))


def test_the_command_has_the_arguments_of_the_environment(tmp_path, monkeypatch):
    config = tiny(env_args=("max_steps_in_episode=50",), sticky_actions=0.1)
    assert parsed(write_run(tmp_path / "run", config), monkeypatch).config == config


@pytest.mark.parametrize(
    "arguments",
    [
        {"actors": 2},
        {"actors": (2, 4), "ray_address": "host:6379", "block_rows": 64, "cpus_per_actor": 0.5},
        {
            "learners": 2, "server_mode": "async", "max_staleness": 3, "staleness_discount": 0.5,
            "compression": "top_k", "top_k_fraction": 0.05, "gpus_per_learner": 0.5,
        },
    ],
)  # fmt: skip
def test_the_command_names_the_engine_with_its_arguments(tmp_path, monkeypatch, arguments):
    engine = RayEngine(**arguments).record()
    run = write_run(tmp_path / "run", replace(preset("per"), num_envs=8), engine=engine)
    again = parsed(run, monkeypatch)
    made = make_engine(again.flags)
    assert made is not None
    assert made.record() == json.loads((run / "engine.json").read_text()) == engine
    assert again.config == replace(preset("per"), num_envs=8)


def test_a_run_on_virtual_devices_has_them_again(tmp_path, monkeypatch):
    config = tiny(devices=2)
    run = write_run(tmp_path / "run", config, device_kind="cpu")
    assert parsed(run, monkeypatch).flags.virtual_devices == 2
    on_gpus = write_run(tmp_path / "gpus", config, device_kind="NVIDIA H100")
    assert parsed(on_gpus, monkeypatch).flags.virtual_devices is None


def test_parts_from_several_directories_are_found(tmp_path):
    parts = {"network": reference("own.py:net"), "replay": reference("mine.py:replay", "/other")}
    first, second, line = lines_of(read_run(write_run(tmp_path / "run", parts=parts)))
    assert first == f"# in {ELSEWHERE}, which has the own parts of run"
    assert second == "# with /other on PYTHONPATH"
    assert "--network own.py:net --replay /other/mine.py:replay" in line


def test_a_run_of_several_processes_says_so(tmp_path):
    *comments, _ = lines_of(read_run(write_run(tmp_path / "run", processes=2)))
    assert comments == [
        "# in each of 2 processes, with --coordinator, --num-processes and --process-id"
    ]


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"network": None}, "its network is an object"),
        ({"network": None, "replay": None}, "its network, replay are objects"),
        ({"registered_loss": {"name": "mine", "head": "linear"}}, "its loss is an object"),
    ],
)
def test_a_part_that_is_an_object_cannot_be_repeated_from_the_command_line(
    tmp_path, monkeypatch, parts, what
):
    monkeypatch.setattr(loss_registry, "LOSSES", dict(loss_registry.LOSSES))
    (line,) = lines_of(read_run(write_run(tmp_path / "run", parts=parts)))
    assert line.startswith("# run cannot be repeated from the command line: ")
    assert what in line


@pytest.mark.slow
def test_the_commands_of_a_report_repeat_a_run_with_own_parts(tmp_path):
    """Both runs have the same losses, in a directory with the configuration and the parts."""
    (tmp_path / "mine.py").write_text(SOURCE)

    def jaxdqn(*arguments):
        command = [sys.executable, "-m", "jaxdqn", *arguments]
        subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=300)

    jaxdqn(
        "run", "--environment", "mine.py:corridor", "--network", "mine.py:Linear", "--num-envs",
        "4", "--batch-size", "8", "--replay-capacity", "256", "--warmup-rows", "32", "--total-rows",
        "400", "--log-every", "100", "--eval-every", "0", "--eval-episodes", "4", "--out", "first",
    )  # fmt: skip
    (tmp_path / "first.json").write_bytes((tmp_path / "first" / "config.json").read_bytes())
    *_, line = lines_of(read_run(tmp_path / "first"))
    jaxdqn(*shlex.split(line)[1:])
    losses = [
        [record["loss"] for record in read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("first", "again/first")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    assert read_run(tmp_path / "again/first").parts == read_run(tmp_path / "first").parts
