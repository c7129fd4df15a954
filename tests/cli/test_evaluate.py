"""``jaxdqn evaluate``: bad input is one line, before anything is loaded."""

from types import SimpleNamespace

import pytest

from jaxdqn.cli import evaluate
from jaxdqn.config.config import Config, to_dict
from jaxdqn.storage.jsonl import write_json
from tests.training.test_distinct_episodes import constant_agent, starts_in


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Make a directory that looks like a run, and fail if its parameters are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxdqn.export.policy.load_run", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", to_dict(Config()))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video", "film.avi"], "video='film.avi': must end in .gif or .mp4"),
        (["--gif", "film.png"], "video='film.png': must end in .gif or .mp4"),
        (["--video", "none/film.mp4"], "must be in a directory that exists"),
        (["--epsilon", "1.5"], "epsilon=1.5: must be between 0 and 1"),
        (["--seed", "-1"], "seed=-1: must be at least 0"),
        (["--network", "mlp"], "network='mlp': must be MODULE:FUNCTION or FILE.py:FUNCTION"),
    ],
)
def test_bad_input_is_one_line(run, flags, message, capsys):
    assert evaluate.main(["run", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_mp4_without_the_extra_is_one_line(run, capsys, monkeypatch):
    monkeypatch.setattr("jaxdqn.envs.video.find_spec", lambda name: None)
    assert evaluate.main(["run", "--gif", "film.mp4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "jaxdqn[video]"' in line


@pytest.mark.parametrize(("flags", "kinds"), [([], 2), (["--epsilon", "0.05"], 1)])
def test_a_deterministic_game_is_also_scored_with_random_actions(
    run, flags, kinds, capsys, monkeypatch
):
    trainer = SimpleNamespace(agent=constant_agent(), environment=starts_in(1))
    monkeypatch.setattr("jaxdqn.export.policy.load_run", lambda *_, **__: (Config(), trainer, None))
    monkeypatch.setattr(evaluate, "keep_compiled_programs", lambda: None)
    assert evaluate.main(["run", "--episodes", "30", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == kinds
    if kinds == 2:
        assert "30 greedy episodes, 1 of them distinct)" in lines[0]
        start = "few episodes are distinct; with an epsilon-greedy policy: return "
        assert lines[1].startswith(start)
    assert "30 0.05-greedy episodes" in lines[-1]
