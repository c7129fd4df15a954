"""A directory of its own for each test, and runs that are made at once."""

from pathlib import Path

import pytest

from tests.cli.test_cli import empty_directory  # noqa: F401 (a fixture)
from tests.studies import FakeRun, study


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Set what the command would leave set."""
    monkeypatch.setenv("NPROC", "1")


@pytest.fixture
def fake(monkeypatch):
    """Neither train nor draw, which takes longer than all the rest."""
    fake = FakeRun()
    monkeypatch.setattr("jaxdqn.run.runner.run", fake)
    monkeypatch.setattr("jaxdqn.cli.study.report.draw_curves", fake.draw)
    return fake


@pytest.fixture
def some(fake, capsys):
    """A results file of three seeds."""
    assert study(seeds=3) == 0
    capsys.readouterr()
    return Path("study/results.jsonl")
