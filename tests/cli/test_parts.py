"""A run with its own environment, network and optimizer, from the command line."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdqn
from jaxdqn.cli import evaluate, explain, replay, run
from jaxdqn.cli.flags import UsageError
from jaxdqn.cli.parts import file_name, take_references
from jaxdqn.config.config import Config
from jaxdqn.run.runner import run as train
from tests.own_parts import SOURCE
from tests.toys import quick_runs

SMALL = [
    "--num-envs", "4", "--batch-size", "8", "--replay-capacity", "256", "--warmup-rows", "32",
    "--eval-episodes", "4", "--eval-every", "0", "--log-every", "200",
    "--n-step", "5",
]  # fmt: skip
OWN = [
    "--environment", "mine:corridor", "--network=mine.py:Linear", "--optimizer", "mine:sgd",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
    """Run in a directory that holds the user's module, and leave JAX's cache as it was."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    path = tmp_path_factory.mktemp("own")
    (path / "mine.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "path", sys.path.copy())
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        patch.setenv("NPROC", "1")
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        yield path
    for name in [name for name in sys.modules if name.startswith("mine")]:
        del sys.modules[name]
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(directory):
    """Train in ``there`` with parts given as references."""
    with quick_runs():
        assert run.main([*SMALL, *OWN, "--total-rows", "2000", "--out", "there"]) == 0
    return directory / "there"


def one_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_run_directory_remembers_the_references(finished, directory):
    parts = json.loads((finished / "parts.json").read_text())
    assert parts.pop("spec")["name"] == "corridor"
    assert parts == {
        name: {"reference": reference, "directory": str(directory)}
        for name, reference in (
            ("environment", "mine:corridor"),
            ("network", "mine.py:Linear"),
            ("optimizer", "mine:sgd"),
        )
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["env"], summary["preset"]) == ("corridor", None)


def test_it_is_evaluated_and_drawn_without_being_told_again(finished, capsys):
    assert evaluate.main(["there", "--episodes", "3", "--video", "episode.gif"]) == 0
    assert "corridor, best parameters: return" in capsys.readouterr().out
    with Image.open("episode.gif") as gif:
        assert gif.n_frames >= 2


def test_its_policy_is_loaded_from_another_directory(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    policy = jaxdqn.load_policy(finished)
    assert set(policy(np.eye(6, dtype=np.float32))) <= {0, 1}


def test_its_replay_is_written_to_a_file(finished, capsys, tmp_path):
    assert replay.main(["there", "--to", str(tmp_path / "rows.npz")]) == 0
    assert "of corridor in" in capsys.readouterr().out


def test_it_is_resumed_without_being_told_again(finished, capsys):
    assert run.main(["--resume", "--out", "there", "--total-rows", "3000"]) == 0
    assert json.loads((finished / "summary.json").read_text())["rows"] >= 3000
    assert json.loads((finished / "parts.json").read_text())["optimizer"] is not None


def test_explain_takes_references_and_has_its_own_help(capsys):
    assert explain.main([*SMALL, *OWN]) == 0
    text = capsys.readouterr().out
    assert "corridor, 2 actions, episodes of at most 20 steps" in text
    assert "parameters            14\n" in text  # of Dense(2) on 6 inputs
    assert explain.main(["--help"]) == 0
    assert "usage: jaxdqn explain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--environment", "CartPole-v1"], "environment='CartPole-v1': must be MODULE:FUNCTION or"),
        (["--environment", "nowhere:make"], "environment='nowhere:make': must name a module"),
        (["--network", "mine:nothing"], "network='mine:nothing': must return a flax module or"),
        (["--optimizer", "mine:transformation"], "must return an optimizer"),
        (["--environment", "mine:corridor", "--environment", "mine:corridor"], "given once"),
        (["--environment"], "--environment"),
    ],
)
def test_bad_references_are_one_line_before_anything_is_compiled(
    flags, message, capsys, monkeypatch
):
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: pytest.fail("compiled")
    )
    assert run.main([*SMALL, *flags, "--out", "bad"]) == 2
    assert message in one_line(capsys)
    assert not Path("bad").exists()


@pytest.mark.parametrize("command", [evaluate, replay])
def test_bad_references_are_one_line_in_the_other_commands_too(command, finished, capsys):
    to = ["--to", "x.npz"] if command is replay else []
    assert command.main(["there", *to, "--environment", "mine"]) == 2
    assert "environment='mine': must be MODULE:FUNCTION" in one_line(capsys)
    assert command.main(["there", *to, "--environment", "mine:corrido"]) == 2
    assert "environment='mine:corrido': must name a function of mine" in one_line(capsys)


def test_an_environment_without_a_name_must_be_given_again(finished, capsys, tmp_path):
    unnamed = tmp_path / "unnamed"
    shutil.copytree(finished, unnamed)
    parts = json.loads((unnamed / "parts.json").read_text())
    (unnamed / "parts.json").write_text(json.dumps({**parts, "environment": None}))
    with pytest.raises(ValueError, match=r"environment=None: must be given: .* has its"):
        jaxdqn.load_policy(unnamed)
    assert jaxdqn.load_policy(unnamed, environment="mine:corridor")(np.ones(6)) in (0, 1)
    for command, more in ((evaluate, []), (replay, ["--to", "z.npz"])):
        assert command.main([str(unnamed), *more]) == 2
        assert "--environment MODULE:FUNCTION" in one_line(capsys)
    assert run.main(["--resume", "--out", str(unnamed)]) == 2
    assert "environment=None: must be given" in one_line(capsys)


@pytest.mark.slow
def test_objects_of_a_python_program_must_be_named(directory, capsys):
    sys.path.insert(0, str(directory))
    import mine

    config = Config(
        num_envs=4, batch_size=8, replay_capacity=256, warmup_rows=32, total_rows=400,
        eval_episodes=4, eval_every=0, log_every=200,
    )  # fmt: skip
    train(config, out="python", environment=mine.corridor(), network="mine:Linear")
    parts = json.loads(Path("python/parts.json").read_text())
    assert parts.pop("spec")["max_episode_steps"] == 20
    assert parts == {
        "environment": None,
        "network": {"reference": "mine:Linear", "directory": str(directory)},
    }
    with pytest.raises(ValueError, match=r"environment=None: must be given: .* in python has its"):
        jaxdqn.load_policy("python")
    assert jaxdqn.load_policy("python", environment="mine:corridor")(np.ones(6)) in (0, 1)
    assert jaxdqn.load_policy("python", environment=mine.corridor())(np.ones(6)) in (0, 1)

    for command, more in ((evaluate, []), (replay, ["--to", "y.npz"])):
        assert command.main(["python", *more]) == 2
        assert "--environment MODULE:FUNCTION" in one_line(capsys)
    assert run.main(["--resume", "--out", "python"]) == 2
    assert "environment=None: must be given" in one_line(capsys)


def test_references_are_told_from_the_librarys_own_names():
    argv = ["dqn", "--network", "mlp", "--optimizer=rmsprop", "--seed", "3", "--network"]
    assert take_references(argv) == (
        ["dqn", "--network", "mlp", "--optimizer", "rmsprop", "--seed", "3", "--network"],
        {},
    )
    argv = ["--network=a:b", "--environment", "c.py:d", "--double"]
    assert take_references(argv) == (["--double"], {"network": "a:b", "environment": "c.py:d"})
    with pytest.raises(UsageError, match="--network: must be given once"):
        take_references(["--network", "a:b", "--network", "a:c"])


def test_a_run_directory_is_named_after_the_environments_module():
    assert file_name("package.module:make") == "module"
    assert file_name("folder/file.py:make") == "file"


def test_every_other_part_is_a_reference_that_evaluation_does_not_need(directory, capsys):
    own = [
        "--explore", "mine:greedy", "--replay", "mine:replay", "--loss", "mine:reward_loss",
        "--environment", "mine:corridor", "--network", "mine:Linear",
    ]  # fmt: skip
    with quick_runs():
        assert run.main([*SMALL, *own, "--total-rows", "1000", "--out", "others"]) == 0
        metrics = (directory / "others" / "metrics.jsonl").read_text().splitlines()
        assert all(-1 <= json.loads(line)["reward"] <= 1 for line in metrics)
        parts = json.loads((directory / "others" / "parts.json").read_text())
        assert parts["loss"]["reference"] == "mine:reward_loss"
        assert evaluate.main(["others", "--episodes", "4"]) == 0
        capsys.readouterr()
        # The layout of a user's replay is unknown, so its rows cannot be exported.
        assert replay.main(["others", "--to", "rows.npz"]) == 2
    assert "must have a built-in replay to export its rows" in one_line(capsys)


@pytest.mark.slow
def test_an_agent_is_remembered_for_evaluation_and_resuming(directory):
    own = ["--agent", "mine:agent", "--learning", "mine:learning", "--environment", "mine:corridor"]
    with quick_runs():
        assert run.main([*SMALL, *own, "--total-rows", "1000", "--out", "agent"]) == 0
        assert run.main(["--resume", "--out", "agent", "--total-rows", "1400"]) == 0
    policy = jaxdqn.load_policy(directory / "agent")
    assert policy(np.eye(6, dtype=np.float32)).shape == (6,)
