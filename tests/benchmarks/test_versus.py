"""Comparison with other libraries: ratios, missing peers, and the process of jaxdqn."""

import sys

import pytest

from benchmarks.processes import Process
from benchmarks.timing import Interval, verdict
from benchmarks.versus import __main__, matched


class FakePeer:
    """Peer with given durations."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)

    def measure(self):
        if not self.seconds:
            return {"missing": "it ended"}
        return {"seconds": self.seconds.pop(0), "env_steps": 100, "gradient_steps": 10}


def test_the_ratio_is_computed_round_by_round():
    # The first call of the peer is its warm-up.
    peer, jaxdqn = FakePeer(99.0, 2.0, 4.0, 8.0), FakePeer(1.0, 1.0, 1.0)
    result = matched.compare("peer", peer, jaxdqn, rounds=3, bar=2.0)
    assert result["ratio"] == Interval(4.0, 2.0, 8.0)
    assert result["gradient_steps_per_second"] == Interval(2.5, 1.25, 5.0)
    assert result["jaxdqn_env_steps_per_second"] == Interval(100.0, 100.0, 100.0)
    lines = matched.results_table([{**result, "compile_seconds": 1.0}])
    assert lines.endswith(">= 2: reached")
    assert verdict(result["ratio"], 2.1, higher_is_better=True).endswith("undecided")
    assert verdict(result["ratio"], 8.1, higher_is_better=True).endswith("missed")


def test_a_peer_that_ends_early_is_reported_as_missing():
    result = matched.compare("peer", FakePeer(1.0, 1.0), FakePeer(1.0, 1.0, 1.0), rounds=3, bar=1.0)
    assert result == {"peer": "peer", "missing": "it ended"}


def test_a_missing_peer_is_reported_with_its_source():
    process = Process.peer(sys.executable, "purejaxrl", "no-such-file.py", 1)
    try:
        answer = process.receive()
    finally:
        process.close()
    assert answer["missing"] == "no-such-file.py: no such file"
    assert "purejaxrl" in answer["get"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("pureja=x.py", "must be a known peer; nearest: purejaxrl"),
        ("sb3=3", "ENVS 1, 2, 5 or 10"),
        ("sb3=0", "ENVS 1, 2, 5 or 10"),
        ("cleanrl", "must be cleanrl=FILE"),
        ("rejax=1", "must be rejax, without an argument"),
        ("sb3-host=4,32", "cadences='4,32': must be K,B,M"),
    ],
)
def test_an_invalid_peer_is_one_line(argument, message, capsys):
    assert __main__.main(["--peer", argument]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.slow
def test_the_jaxdqn_process_does_the_requested_work():
    process = Process.jaxdqn(30, cpu_threads=1)
    try:
        assert process.receive()["compile_seconds"] > 0
        for _ in range(2):
            answer = process.measure()
            assert answer["gradient_steps"] == 30
            assert 0 < answer["env_steps"] <= 300
            assert answer["seconds"] > 0
    finally:
        process.close()
