"""Techniques: registry, speed-ups, and the command ``jaxdqn compare``."""

import json
import subprocess
import sys

import pytest

from benchmarks import timing
from benchmarks.techniques import __main__ as compare
from benchmarks.techniques import registry, table  # noqa: F401 (table registers)
from benchmarks.timing import Case, Interval
from tests.clock import Clock
from tests.studies import ROOT


def test_every_technique_is_described_completely():
    assert {"device-loop", "batch-size", "n-step", "population"} <= set(registry.TECHNIQUES)
    for name, technique in registry.TECHNIQUES.items():
        assert name == technique.name
        assert all(technique._asdict().values())
        assert callable(technique.measure)


def test_a_repeated_or_incomplete_technique_is_rejected():
    technique = next(iter(registry.TECHNIQUES.values()))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(technique)
    with pytest.raises(ValueError, match="costs=''"):
        registry.register(technique._replace(name="new", costs=""))


def test_the_speed_up_of_the_faster_case_is_above_one(monkeypatch):
    clock = Clock()
    original = timing.alternate
    monkeypatch.setattr(
        registry, "alternate", lambda *a, **k: original(*a, **k, clock=clock, wait=id)
    )
    cases = {"slow": Case(clock.work("slow", 8.0), work=2), "fast": Case(clock.work("fast", 1.0))}
    (result,) = registry.speed_ups(cases, registry.QUICK, of="steps")
    assert result == registry.Result("fast", "slow", Interval(4.0, 4.0, 4.0), "steps")


def test_compare_prints_a_registered_technique_and_writes_both_files(monkeypatch, tmp_path, capsys):
    result = registry.Result("new", "old", Interval(2.0, 1.5, 2.5), "steps")
    technique = registry.Technique("mine", "p", "g", "c", "toy", lambda effort: [result])
    monkeypatch.setitem(registry.TECHNIQUES, "mine", technique)
    files = ["--json", f"{tmp_path}/t.json", "--markdown", f"{tmp_path}/t.md"]
    monkeypatch.setattr(compare, "compile_cold", lambda: None)
    assert compare.main(["--only", "mine", "--quick", *files]) == 0
    assert "mine        new      old  2.00 (1.50-2.50)  steps" in capsys.readouterr().out
    (written,) = json.loads((tmp_path / "t.json").read_text())["techniques"]
    assert written["results"][0]["speed_up"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert written["measured on"] == "toy"
    assert "| mine | new | old | 2.00 (1.50-2.50) | steps |" in (tmp_path / "t.md").read_text()


def test_an_unknown_technique_is_an_error_with_the_nearest_names(capsys):
    assert compare.main(["--only", "n-stp"]) == 2
    assert (
        capsys.readouterr().err
        == "error: only='n-stp': must be a known technique; nearest: n-step\n"
    )


def test_the_command_registers_each_technique_once():
    """Run the package as ``__main__``: a second import by name would register twice and raise."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.techniques", "--only", "n-stp"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: only='n-stp': must be a known technique; nearest: n-step\n"
