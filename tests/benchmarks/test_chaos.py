"""The benchmark that kills parts of runs on Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import chaos
from benchmarks.chaos import Flags, Phase, main


def test_invalid_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--actors", "0"]) != 0
    assert "actors=0: must be above 0" in capsys.readouterr().err


def test_the_table_and_the_file_have_the_three_phases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rates = iter([1_000.0, 850.0, 400.0])
    killed = []

    class Fake:
        def __init__(self, flags: Flags, kinds: tuple[str, ...], out: Path) -> None:
            killed.append(tuple(kinds))

        def play(self) -> dict[str, Any]:
            return {
                "solved": True,
                "seconds_to_solve": 12.5,
                "rows_per_second": next(rates),
                "kills": dict.fromkeys(killed[-1], 2),
                "lost": 0,
                "duplicated": 0,
                "leaked": [],
            }

    monkeypatch.setattr(chaos, "Phase", Fake)
    file = tmp_path / "chaos.json"
    assert main(["--server-mode", "sync", "--json", str(file)]) == 0
    assert killed == [
        (),
        ("ActorWorker",),
        ("ActorWorker", "ShardWorker", "run", "LearnerWorker"),
    ]
    phases = json.loads(file.read_text())["phases"]
    ratios = {name: phase["rate_over_undisturbed"] for name, phase in phases.items()}
    assert ratios == {"undisturbed": 1.0, "actors": 0.85, "all parts": 0.4}
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("actors") and "0.85" in line for line in table)
    assert table[-1] == f"results in {file}"


def test_lost_and_duplicated_rows_are_those_of_all_drivers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    lines = [{"rows": rows, "train_seconds": rows / 1_000, "rows_lost": lost, "rows_duplicated": 2}
             for rows, lost in ((1_000, 0.0), (3_000, 512.0))]  # fmt: skip
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {"taken": 9, "stored": 8, "lost": 1, "duplicated": 4, "on_their_way": 0}
    summary = {"ray_rows": rows, "solved": True, "seconds_to_solve": 1.0, "worker_restarts": 0}
    (out / "summary.json").write_text(json.dumps(summary))
    phase: Any = Phase(Flags(), ("run",), out)
    phase._from = 0
    monkeypatch.setattr(phase, "_start", lambda: "resumed")
    killed: Any = SimpleNamespace(kill=lambda: None, wait=lambda: None)
    assert phase._kill(killed)[0] == "resumed"
    result = phase._results()
    assert (result["lost"], result["duplicated"]) == (513, 6)
    assert result["rows_per_second"] == 1_000


@pytest.mark.slow
def test_a_run_whose_parts_are_killed_loses_no_rows_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    flags = Flags(seconds=25, every=8, actors=2, shards=1, seed=1)
    result = Phase(flags, ("ActorWorker", "run"), tmp_path / "run").play()
    assert sum(result["kills"].values()) >= 2
    assert result["ray_rows"]["taken"] > 0
    assert (result["lost"], result["duplicated"], result["leaked"]) == (0, 0, [])
