"""The benchmark of actors on Ray."""

from __future__ import annotations

import pytest

from benchmarks.actors import Flags, main, rows_per_second


def test_invalid_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "0"]) != 0
    assert "rounds=0: must be at least 1" in capsys.readouterr().err
    assert main(["--actors", "0", "2"]) != 0
    assert "actors=(0, 2): must be numbers of at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_two_and_four_actors_speed_up_a_slow_simulator() -> None:
    pytest.importorskip("ray")
    pytest.importorskip("gymnasium")
    flags = Flags()
    one, two, four = (rows_per_second(flags, actors) for actors in (1, 2, 4))
    assert 70 < one < 100  # a step takes 10 ms
    assert two / one >= 1.9
    assert four / one >= 3.6
