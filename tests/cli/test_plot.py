"""``jaxdqn plot``: bad input is one line."""

import pytest

from jaxdqn.cli import plot
from jaxdqn.config.config import Config, to_dict
from jaxdqn.storage.jsonl import write_json


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", to_dict(Config()))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("curves", "out='curves': must end in one of .avif, .eps"),
        ("curves.xyz", "out='curves.xyz': must end in one of "),
        (".", "out='.': must end in one of "),
        ("none/curves.png", "out='none/curves.png': must be writable: No such file"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(run, out, message, capsys):
    assert plot.main(["run", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_damaged_file_is_named(run, capsys):
    (run / "metrics.jsonl").write_text('{"return_mean": null}\n{broken\n')
    assert plot.main(["run", "--out", "curves.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: line 2 must be JSON" in line
