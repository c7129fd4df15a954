"""The benchmark that kills parts of runs on Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import Flags, Phase, main


def test_invalid_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--actors", "0"]) != 0
    assert "actors=0: must be above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_parts_are_killed_loses_no_rows_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    flags = Flags(seconds=25, every=8, actors=2, shards=1, seed=1)
    result = Phase(flags, ("ActorWorker", "run"), tmp_path / "run").play()
    assert sum(result["kills"].values()) >= 2
    assert result["ray_rows"]["taken"] > 0
    assert (result["lost"], result["twice"], result["left"]) == (0, 0, [])
