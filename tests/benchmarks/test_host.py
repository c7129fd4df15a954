"""Benchmark of environments on the host."""

import pytest

from benchmarks import host


@pytest.mark.slow
def test_every_case_of_a_cadence_is_measured(capsys):
    assert host.main(["--rounds", "1", "--seconds", "0.01", "--cadences", "8,16,2"]) == 0
    output = capsys.readouterr().out
    for how in ("not learning", "serial", "overlapped"):
        assert f"K=8 B=16 M=2, {how}" in output


@pytest.mark.parametrize("cadence", ["4,32", "4,0,1", "a,b,c"])
def test_an_invalid_cadence_is_named(cadence, capsys):
    assert host.main(["--cadences", cadence]) == 2
    assert f"cadences={cadence!r}: must be K,B,M" in capsys.readouterr().err
