"""The benchmark of resets at every step and pooled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import resets
from benchmarks.resets import main
from benchmarks.timing import Case

SECONDS = {"every-step": 0.5, "pooled": 0.25}
"""Seconds of an environment step; with an expensive reset four times as many."""


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace training and the clock."""

    def make_case(products: int, how: str, rollout_length: int) -> Case:
        return Case(lambda: None, work=SECONDS[how] * (4 if products else 1))

    def alternate(cases: dict[str, Case], *, rounds: int, seconds: float) -> dict[str, list[float]]:
        return {name: [case.work] * rounds for name, case in cases.items()}

    monkeypatch.setattr(resets, "make_case", make_case)
    monkeypatch.setattr(resets, "alternate", alternate)


def test_the_file_has_the_rates_of_the_table_and_their_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "resets.json"
    assert main(["--rounds", "6", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["stamp"]["versions"]["jax"]
    assert report["flags"]["rounds"] == 6
    medians = {
        name: [case[key]["median"] for key in ("env_steps_per_second", "over_every_step")]
        for name, case in report["cases"].items()
    }
    assert medians == {
        "cheap reset, every-step": [2.0, 1.0],
        "cheap reset, pooled": [4.0, 2.0],
        "expensive reset, every-step": [0.5, 1.0],
        "expensive reset, pooled": [1.0, 2.0],
    }
    output = capsys.readouterr().out
    assert "expensive reset, pooled" in output
    assert f"measurements in {file}" in output


def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resets, "alternate", lambda *_, **__: pytest.fail("measured"))
    assert main(["--json", str(tmp_path)]) == 2
    assert "must be a file, not a directory" in capsys.readouterr().err
