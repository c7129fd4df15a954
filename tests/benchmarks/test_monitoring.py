"""The benchmark of loggers, callbacks and diagnostics."""

import json

import pytest

from benchmarks import monitoring


def test_cases_alternate_and_the_first_round_is_left_out():
    calls = []

    def case(name):
        def run():
            calls.append(name)
            return float(len(calls))

        return run

    times = monitoring.measure({name: case(name) for name in "ab"}, rounds=2)
    assert calls == list("ababab")
    assert times == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_wrong_numbers_are_rejected(capsys):
    assert monitoring.main(["--chunks", "1"]) == 2
    assert "chunks=1: must be at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_of_a_chunk_is_written(tmp_path, capsys):
    out = tmp_path / "monitoring.json"
    assert monitoring.main(["--rounds", "1", "--chunks", "3", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found["seconds"].values())
    assert set(found["ratios"]) == set(found["seconds"])
    assert "diagnostics" in capsys.readouterr().out
