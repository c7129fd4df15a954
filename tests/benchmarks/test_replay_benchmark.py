"""The benchmark of replays: bytes that can be counted by hand, and times of what it says."""

import json

import pytest

from benchmarks.replay import __main__
from benchmarks.replay.cases import bytes_per_transition


def test_bytes_of_a_transition_are_those_of_its_parts():
    sizes = {row["rows"]: row for row in bytes_per_transition()}
    frames = sizes["MinAtar, bool (10,10,4)"]
    # 50 bytes of bits, flags 1, action 4, reward 4, and 4 of the list of starts.
    assert frames["uniform"] == pytest.approx(63, abs=0.5)
    # Two observations a byte an element, action, reward, and discount or ends.
    assert frames["pairs, unpacked"] == 812
    assert frames["uniform"] <= frames["pairs, unpacked"] / 6
    atari = sizes["Atari, uint8 (84,84), stack 4"]
    assert atari["uniform"] <= atari["pairs, unpacked"] / 7


@pytest.mark.slow
def test_every_replay_is_timed_whole_and_by_its_parts(tmp_path, capsys, monkeypatch):
    # The peer does not run under the settings of tests.
    monkeypatch.setattr(__main__, "peer_is_installed", lambda: False)
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
    ("flags", "complaint"),
    [
        (["--batches", "1"], "batches=1: must be 32 at least"),
        (["--rows", "complex"], "rows='complex': must begin one of"),
        (["--rounds", "0"], "rounds=0: must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_one_line(flags, complaint, capsys):
    assert __main__.main(flags) == 2
    assert complaint in capsys.readouterr().err
