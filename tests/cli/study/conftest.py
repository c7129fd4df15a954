"""A separate directory for each test, and runs that do not train."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.test_cli import empty_directory  # noqa: F401 (a fixture)
from tests.studies import FakeRun, study


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Set the variable that the command would set and leave behind."""
    monkeypatch.setenv("NPROC", "1")


@pytest.fixture
def fake(monkeypatch):
    """Replace training and drawing, the slow parts of a study."""
    fake = FakeRun()
    monkeypatch.setattr("jaxdqn.run.runner.run", fake)
    monkeypatch.setattr("jaxdqn.cli.study.report.draw_curves", fake.draw)
    monkeypatch.setattr("jaxdqn.cli.study.jobs.gc", SimpleNamespace(collect=lambda: 0))
    return fake


@pytest.fixture
def recorded(fake, capsys):
    """Return a results file with three seeds."""
    assert study(seeds=3) == 0
    capsys.readouterr()
    return Path("study/results.jsonl")
