"""The commands of the projects: arguments, arrangements, tables and pages, without training."""

import json
import re
from pathlib import Path

import pytest

from experiments.projects import compared, devices, driving, frames, page, training
from jaxdqn.cli import run as run_command
from jaxdqn.cli.engine import make_engine
from jaxdqn.config.config import to_dict
from jaxdqn.config.presets import preset
from jaxdqn.storage.engine_record import write_engine
from tests.studies import ROOT

SUMMARY = {
    "preset": "fast", "env": "pixels:bat-and-ball", "mapping": "none", "rows": 50_000,
    "env_steps": 49_000, "gradient_steps": 1_500, "train_seconds": 100.0, "compile_seconds": 9.0,
    "env_steps_per_second": 490.0, "gradient_steps_per_second": 15.0, "solve_return": 9.9,
    "solved": True, "seconds_to_solve": 120.0, "eval_episodes": 32,
    "eval_return_mean": 10.5, "eval_return_std": 1.0, "eval_terminated_share": 0.25, "held": False,
    "interrupted": False, "ended_by": "solved",
}  # fmt: skip


@pytest.fixture
def commands(monkeypatch):
    """Replace ``jaxdqn`` commands: record their words, and write a summary for each run."""
    given = []

    def command(*words):
        given.append(words)
        if words[0] == "run":
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / "summary.json").write_text(json.dumps(SUMMARY))

    monkeypatch.setattr(training, "command", command)
    return given


@pytest.fixture
def results_page(tmp_path):
    file = tmp_path / "docs" / "projects" / "page.md"
    file.parent.mkdir(parents=True)
    file.write_text("# Title\n\n<!-- results -->\nold\n<!-- end of results -->\n\nAfter.\n")
    return file


def test_results_replace_the_block_of_a_page_and_nothing_else(results_page):
    page.check_page(results_page)
    page.write_results(results_page, {"a": 1}, ["First.", page.table(("x", "y"), [(1, None)])])
    text = results_page.read_text()
    assert text.startswith("# Title\n\n<!-- results -->\nFirst.\n\n| x | y |\n")
    assert text.endswith("<!-- end of results -->\n\nAfter.\n")
    assert "| 1 | not measured |" in text
    assert "old" not in text
    assert json.loads(results_page.with_suffix(".json").read_text()) == {"a": 1}
    page.write_results(results_page, {"a": 2}, ["Second."])
    assert "First." not in results_page.read_text()


def test_a_page_without_a_place_for_results_is_rejected_before_training(tmp_path, commands, capsys):
    (tmp_path / "bare.md").write_text("# Title\n")
    for name in ("bare.md", "none.md"):
        arguments = ["--rounds", "0", "--page", str(tmp_path / name)]
        assert frames.main(arguments) == 2
        assert "page=" in capsys.readouterr().err
    assert commands == []


@pytest.mark.parametrize("project", [frames, driving, devices])
def test_the_page_of_a_project_has_a_place_for_its_results(project):
    page.check_page(ROOT / project.PAGE)


def test_frames_trains_each_algorithm_draws_the_first_and_writes_its_page(
    results_page, tmp_path, commands, capsys
):
    out = tmp_path / "runs"
    flags = ["--rounds", "0", "--presets", "fast", "pqn", "--rows", "50000"]
    assert frames.main([*flags, "--out", str(out), "--page", str(results_page)]) == 0
    images = results_page.parent.parent / "images"
    run = ("--env", "pixels:bat-and-ball", "--seed", "0", "--total-rows", "50000")
    assert commands == [
        ("run", "fast", *run, "--out", str(out / "fast")),
        ("run", "pqn", *run, "--out", str(out / "pqn")),
        ("plot", str(out / "fast"), "--out", str(images / "frames.png")),
        ("evaluate", str(out / "fast"), "--episodes", "1", "--video", str(images / "frames.gif")),
    ]
    text = results_page.read_text()
    assert "| `fast` | 10.5 | 120 | 50,000 | 100 | 500 |" in text
    assert "| Python loop, 1 environment | not measured | not measured |" in text
    record = json.loads(results_page.with_suffix(".json").read_text())
    assert record["runs"]["pqn"]["rows"] == 50_000
    assert "held" not in record["runs"]["pqn"]
    assert "Measured on" in capsys.readouterr().out


def stored_run(out, words, **summary):
    """Write the configuration of ``jaxdqn run WORDS``, and a summary if it has fields."""
    out.mkdir(parents=True, exist_ok=True)
    config = run_command.config_from(run_command.read_flags(list(words))[1])
    (out / "config.json").write_text(json.dumps(to_dict(config)))
    if summary:
        (out / "summary.json").write_text(json.dumps({**SUMMARY, **summary}))


def test_a_run_without_a_summary_is_resumed_and_not_trained_again(tmp_path, commands):
    stored_run(tmp_path, ["fast", "--seed", "1"])
    training.train("fast", ["--seed", "1"], tmp_path)
    training.train("fast", ["--seed", "1"], tmp_path)
    assert commands == [("run", "--resume", "--out", str(tmp_path))]


@pytest.mark.parametrize("interrupted", [True, None])
def test_a_run_is_resumed_unless_its_summary_says_that_it_was_not_interrupted(
    tmp_path, commands, interrupted
):
    stored_run(tmp_path, ["fast"], interrupted=interrupted, rows=10)
    assert training.train("fast", [], tmp_path)["rows"] == SUMMARY["rows"]
    assert commands == [("run", "--resume", "--out", str(tmp_path))]


def test_a_run_that_is_interrupted_again_ends_the_project(tmp_path, monkeypatch):
    stored_run(tmp_path, ["fast"], interrupted=True)
    monkeypatch.setattr(training, "command", lambda *words: None)
    with pytest.raises(RuntimeError, match="interrupted; repeat the command to resume it"):
        training.train("fast", [], tmp_path)


@pytest.mark.parametrize(
    ("stored", "now", "message"),
    [
        (["fast"], ["fast", "--seed", "1"], "seed=1: must be 0"),
        (["fast"], ["fast", "--total-rows", "9000"], "total_rows=9000: must be"),
        (["fast", "--gamma", "0.9"], ["fast"], "gamma=0.99: must be 0.9"),
        (["pqn"], ["fast"], "total_rows=600000: must be 500000"),
        (["fast", "--reset", "pooled"], ["fast", "--reset", "every-step"],
         "reset='every-step': must be 'pooled'"),
    ],
)  # fmt: skip
def test_a_run_of_other_flags_is_rejected_by_the_first_field_that_differs(
    tmp_path, commands, stored, now, message
):
    stored_run(tmp_path, stored, interrupted=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        training.train(now[0], now[1:], tmp_path)
    assert commands == []


def test_a_run_of_another_engine_is_rejected(tmp_path, commands):
    words = ["--replay", "prioritized"]
    stored_run(tmp_path, ["fast", *words], interrupted=False)
    write_engine(tmp_path, {"engine": "ray", "actors": 2, "replay_shards": 1})
    with pytest.raises(ValueError, match="engine=\"engine='jit'\": must be"):
        training.train("fast", words, tmp_path)
    assert commands == []


def test_a_run_on_ray_without_its_replay_is_read(tmp_path, commands):
    words = ["--replay", "prioritized"]
    stored_run(tmp_path, ["fast", *words, "--no-replay-in-checkpoint"], interrupted=False)
    flags = [*words, "--engine", "ray", "--actors", "2"]
    given = run_command.read_flags(["fast", *flags])[1]
    write_engine(tmp_path, make_engine(given).record())
    training.train("fast", flags, tmp_path)
    assert commands == []


def test_fields_that_a_run_chooses_are_not_compared(tmp_path, commands):
    stored_run(tmp_path, ["fast", "--reset", "pooled", "--chunk-iterations", "8"],
               interrupted=False)  # fmt: skip
    training.train("fast", [], tmp_path)
    assert commands == []


def test_a_command_that_fails_ends_the_project():
    with pytest.raises(RuntimeError, match="jaxdqn run ended with exit code 2"):
        training.command("run", "no-such-preset")


def test_the_loops_that_are_compared_make_a_gradient_step_for_equal_rows():
    loops = frames.ladder("pixels:bat-and-ball")
    assert list(loops) == [
        "Python loop, 1 environment",
        "scanned loop, 1 environment",
        "scanned loop, 32 environments",
    ]
    for config in loops.values():
        assert config.rows_per_iteration / config.gradient_steps_per_iteration == 32
    assert [config.num_envs for config in loops.values()] == [1, 1, 32]


def test_the_speeds_of_a_game_on_the_host_are_not_measured():
    assert frames.measure(frames.Flags(env="ale:pong")) == []


def test_a_game_that_cannot_be_drawn_is_rejected_before_training(commands, capsys):
    assert frames.main(["--env", "BernoulliBandit-misc", "--presets", "fast", "--rounds", "0"]) == 2
    assert (
        "env='BernoulliBandit-misc': must have a render function to be drawn"
        in capsys.readouterr().err
    )
    assert commands == []


@pytest.mark.parametrize(
    ("project", "flags"),
    [(frames, ["--env", "ale:pong", "--presets", "fast"]), (devices, ["--actors", "2"])],
)
def test_results_are_printed_and_written_before_an_episode_is_drawn(
    project, flags, results_page, tmp_path, commands, monkeypatch, capsys
):
    def fail(*arguments, **options):
        raise RuntimeError("cannot be drawn")

    monkeypatch.setattr(training, "draw", fail)
    monkeypatch.setattr(compared, "missing", lambda packages: [])
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        project.main([*flags, "--out", str(tmp_path / "runs"), "--page", str(results_page)])
    assert "| 50,000 |" in capsys.readouterr().out
    assert "| 50,000 |" in results_page.read_text()


@pytest.mark.slow  # compiles three training loops
def test_the_speeds_of_the_loops_are_measured_against_the_first(monkeypatch):
    config = preset("cartpole", num_envs=4, hidden_sizes=(4,), n_step=1, replay_capacity=2_048)
    monkeypatch.setattr("jaxdqn.config.presets.preset", lambda *_, **__: config)
    flags = frames.Flags(env="CartPole-v1", rounds=2, seconds=0.01, iterations=3)
    found = frames.measure(flags)
    assert [each["name"] for each in found] == list(frames.ladder("CartPole-v1"))
    assert found[0]["speed_up"] == 1
    for each in found:
        median, low, high = each["rows_per_second"]
        assert 0 < low <= median <= high
        assert each["speed_up"] == median / found[0]["rows_per_second"][0]
    assert found[2]["speed_up"] > 1, "one program is faster than a Python loop"


@pytest.mark.parametrize(
    ("project", "flags"), [(driving, driving.Flags()), (devices, devices.Flags()),
                           (devices, devices.Flags(virtual=False, devices=4, actors=8))]
)  # fmt: skip
def test_every_arrangement_is_a_valid_command(project, flags):
    name = "driving" if project is driving else flags.preset
    for arrangement in project.arrangements(flags):
        more = [] if project is driving else ["--replay", "prioritized"]
        run_command.config_from(run_command.read_flags([name, *more, *arrangement.flags])[1])


def test_arrangements_without_their_packages_are_named_and_the_others_trained(
    results_page, tmp_path, commands, monkeypatch
):
    monkeypatch.setattr(compared, "missing", lambda packages: list(packages))
    arguments = ["--out", str(tmp_path / "runs"), "--page", str(results_page), "--rows", "9000"]
    assert devices.main(arguments) == 0
    trained = [words for words in commands if words[0] == "run"]
    assert [words[words.index("--out") + 1][-1] for words in trained] == ["0", "1"]
    assert "--virtual-devices" in trained[1]
    text = results_page.read_text()
    assert "| 2 actors, 1 learner | not run: ray is not installed |" in text
    assert "| 1 device | 50,000 | 100 | 500 | 15.0 | 10.50 |" in text
    record = json.loads(results_page.with_suffix(".json").read_text())
    assert record["runs"][2]["missing"] == ["ray"]
    assert record["runs"][2]["command"].startswith("jaxdqn run breakout --replay prioritized")


def test_driving_names_the_packages_that_are_missing_and_how_to_install_them(
    commands, monkeypatch, capsys
):
    monkeypatch.setattr(training, "missing", lambda packages: list(packages))
    assert driving.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        'error: envpool, ray: must be installed for this project: pip install "jaxdqn[driving,ray]"'
    )
    assert commands == []


def test_driving_compares_four_arrangements_by_their_crashes(
    results_page, tmp_path, commands, monkeypatch
):
    absent = ["highway_env"]
    monkeypatch.setattr(
        training, "missing", lambda packages: [name for name in packages if name in absent]
    )
    monkeypatch.setattr(compared, "missing", lambda packages: [])
    arguments = ["--out", str(tmp_path / "runs"), "--page", str(results_page)]
    assert driving.main(arguments) == 0
    assert len([words for words in commands if words[0] == "run"]) == 4
    assert [words for words in commands if words[0] == "evaluate"] == [], "no simulator renders"
    absent.clear()
    assert driving.main(arguments) == 0
    video = str(results_page.parent.parent / "images" / "driving.gif")
    assert commands[-1] == (
        "evaluate", str(tmp_path / "runs" / "0"), "--on", "gymnasium:highway_env:highway-fast-v0",
        "--episodes", "1", "--video", video,
    )  # fmt: skip
    line = "| 2 actors, 2 learners, asynchronous | 50,000 | 100 | 500 | 15.0 | 10.50 | 0.25 |"
    assert line in results_page.read_text()


@pytest.mark.parametrize(
    ("project", "arguments", "message"),
    [
        (frames, ["--rounds", "-1"], "rounds=-1: must be at least 0"),
        (frames, ["--iterations", "0"], "iterations=0: must be at least 1"),
        (frames, ["--presets", "fats"], "preset='fats': must be a known preset; nearest: fast"),
        (driving, ["--actors", "3"], "actors=3: must divide num_envs=16"),
        (driving, ["--learners", "0"], "learners=0: must be at least 1"),
        (devices, ["--devices", "5"], "devices=5: must divide num_envs=32"),
        (devices, ["--preset", "pqn"], "preset='pqn': must be of algorithm='dqn'"),
    ],
)
def test_invalid_arguments_are_one_line(project, arguments, message, commands, capsys):
    assert project.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert commands == []
