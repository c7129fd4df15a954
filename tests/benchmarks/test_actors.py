"""The benchmark of actors on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import actors
from benchmarks.actors import Flags, main, rows_per_second


def test_invalid_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "0"]) != 0
    assert "rounds=0: must be at least 1" in capsys.readouterr().err
    assert main(["--actors", "0", "2"]) != 0
    assert "actors=(0, 2): must be numbers of at least 1" in capsys.readouterr().err


def test_the_table_and_the_file_have_the_rates_and_their_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    measured = {1: iter([80.0, 90.0, 100.0]), 2: iter([160.0, 171.0, 210.0])}
    monkeypatch.setattr(actors, "rows_per_second", lambda flags, number: next(measured[number]))
    file = tmp_path / "results" / "actors.json"
    assert main(["--actors", "1", "2", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["rows_per_second"]["2"] == {"median": 171.0, "low": 160.0, "high": 210.0}
    assert written["over_first"]["1"]["median"] == 1.0
    assert written["over_first"]["2"]["median"] == 2.0
    assert written["flags"]["env"] == actors.SLOW
    assert written["stamp"]["versions"]["jax"]
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].split() == ["actors", "rows/s", "over", "1"]
    assert table[2].startswith("2")
    assert "171" in table[2]
    assert table[3] == f"measurements in {file}"


@pytest.mark.slow
def test_two_and_four_actors_speed_up_a_slow_simulator() -> None:
    pytest.importorskip("ray")
    pytest.importorskip("gymnasium")
    flags = Flags()
    one, two, four = (rows_per_second(flags, actors) for actors in (1, 2, 4))
    assert 70 < one < 100  # a step takes 10 ms
    assert two / one >= 1.9
    assert four / one >= 3.6
