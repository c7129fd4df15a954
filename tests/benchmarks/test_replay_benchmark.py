"""Benchmark of the replays: bytes counted by hand, and the timed parts."""

import json

import pytest

from benchmarks.replay import __main__
from benchmarks.replay.cases import bytes_per_transition


def test_the_bytes_of_a_transition_are_the_sum_of_its_parts():
    sizes = {row["rows"]: row for row in bytes_per_transition()}
    frames = sizes["MinAtar, bool (10,10,4)"]
    # 50 bytes of packed bits, 1 of flags, 4 of action, 4 of reward, 4 in the list of starts.
    assert frames["uniform"] == pytest.approx(63, abs=0.5)
    # Two observations of one byte per element, and 4 bytes each for action, reward and discount.
    assert frames["pairs, unpacked"] == 812
    assert frames["uniform"] <= frames["pairs, unpacked"] / 6
    atari = sizes["Atari, uint8 (84,84), stack 4"]
    assert atari["uniform"] <= atari["pairs, unpacked"] / 7


@pytest.mark.slow
def test_every_replay_is_timed_together_and_by_parts(tmp_path, capsys, monkeypatch):
    # flashbax does not run under the strict settings of the tests.
    monkeypatch.setattr(__main__, "flashbax_is_installed", lambda: False)
    file = tmp_path / "replay.json"
    flags = ["--rows", "float32", "--rounds", "1"]
    assert __main__.main([*flags, "--quick", "--json", str(file)]) == 0
    times = {row["replay"]: row for row in json.loads(file.read_text())["times"]}
    assert set(times) == {"uniform", "prioritised"}
    for row in times.values():
        assert row["together"]["median"] > 0
        assert row["add"]["median"] > 0
    assert "update" in times["prioritised"]
    assert "update" not in times["uniform"]
    assert "flashbax is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batches", "1"], "batches=1: must be at least 32"),
        (["--rows", "complex"], "rows='complex': must be the start of one of"),
        (["--rounds", "0"], "rounds=0: must be at least 1"),
    ],
)
def test_an_invalid_flag_is_one_line(flags, message, capsys):
    assert __main__.main(flags) == 2
    assert message in capsys.readouterr().err
