"""The benchmark of arrangements on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import arrangements
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


def records(steps_per_second: float, **ages: float) -> list[dict[str, float]]:
    """Return four records of a run at a constant rate."""
    return [
        {
            "rows": 32 * steps_per_second * second,
            "gradient_steps": steps_per_second * second,
            "train_seconds": float(second),
            **ages,
        }
        for second in range(4)
    ]


def test_a_measurement_has_rates_and_the_ages_that_the_arrangement_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def fake(options: tuple[str, ...], seconds: float) -> list[dict[str, float]]:
        asked.append(options)
        return records(50.0, parameter_age=3.0, sample_age=100.0)

    monkeypatch.setattr(arrangements, "records_of", fake)
    name, file = "2 actors, 2 shards", tmp_path / "one.json"
    options = ["--only", name, "--rows", "6000", "--rounds", "1", "--json", str(file)]
    assert main(options) == 0
    case = json.loads(file.read_text())["cases"][name]
    assert {key: value["median"] for key, value in case.items()} == {
        "gradient_steps_per_second": 50.0,
        "rows_per_second": 1_600.0,
        "parameter_age": 3.0,
        "sample_age": 100.0,
        "over_first": 1.0,
    }
    assert asked[0][:4] == ("--actors", "2", "--replay-shards", "2")
    assert "--log-every" in asked[0]
    assert "1000" in asked[0]


def test_the_table_and_the_file_have_every_arrangement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = {
        "1 actor": records(50.0, parameter_age=3.0, sample_age=100.0),
        "2 learners, async": records(
            75.0, parameter_age=4.0, sample_age=90.0, gradient_staleness=1.5
        ),
        "one program (jit)": records(500.0),
    }

    def fake(options: tuple[str, ...], seconds: float) -> list[dict[str, float]]:
        case = next(name for name in runs if options[:2] == arrangements.CASES[name][:2]
                    and ("--server-mode" in options) == ("learners" in name))  # fmt: skip
        return runs[case]

    monkeypatch.setattr(arrangements, "records_of", fake)
    file = tmp_path / "arrangements.json"
    assert main(["--only", *runs, "--rounds", "3", "--json", str(file)]) == 0
    cases = json.loads(file.read_text())["cases"]
    assert list(cases) == list(runs)
    assert cases["2 learners, async"]["over_first"]["median"] == 1.5
    assert cases["2 learners, async"]["gradient_staleness"]["median"] == 1.5
    assert "parameter_age" not in cases["one program (jit)"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("one program (jit)") and "500" in line for line in lines)
    assert any(line.startswith("arrangement ") and "gradient_staleness" in line for line in lines)
