"""The benchmark of arrangements on Ray."""

from __future__ import annotations

import pytest

from benchmarks.arrangements import main
from benchmarks.ray_runs import rate


def test_invalid_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "5 actors"]) != 0
    assert "only='5 actors': must be one of 1 actor, 2 actors" in capsys.readouterr().err
    assert main(["--rows", "0"]) != 0
    assert "rows=0: must be at least 1" in capsys.readouterr().err


def test_rates_leave_out_the_first_chunk() -> None:
    records = [{"rows": rows, "train_seconds": seconds} for rows, seconds in
               ((10, 9.0), (20, 10.0), (60, 12.0))]  # fmt: skip
    assert rate(records, "rows") == 20.0
