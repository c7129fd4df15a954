"""Benchmark of environments on the host."""

import importlib.util
import json
import sys
import time

import pytest

from benchmarks import atari, dispatch, host
from benchmarks.timing import Case, Interval, alternate


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


class FakePeer:
    """Process that answers from a list."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def measure(self):
        return self.answers.pop(0) if self.answers else {"missing": "it ended"}


def ticking(seconds):
    """Return work of one unit that sleeps."""
    return Case(lambda: time.sleep(seconds))


def test_a_gradient_step_is_compared_with_forward_and_backward_round_by_round():
    answers = [{"seconds": 0.02, "gradient_steps": 4}] * 4  # the first warms up
    result = atari.compare_nature(ticking(0.01), FakePeer(*answers), rounds=3)
    assert result["torch_seconds"] == Interval(0.005, 0.005, 0.005)
    assert 2.0 <= result["ratio"].low < 10
    assert result["bar"] == "<= 1.6: missed"
    ended = atari.compare_nature(ticking(0.0), FakePeer(*answers[:2]), rounds=3)
    assert ended == {"missing": "it ended"}


def test_the_rate_of_acting_is_over_emulator_and_forward_one_after_the_other(monkeypatch, capsys):
    cases = {"emulator": ticking(0.01), "forward": ticking(0.02), "acting": ticking(0.015)}
    monkeypatch.setattr(atari, "acting_cases", lambda *arguments: cases)
    assert host.main(["--sections", "atari", "--rounds", "3", "--seconds", "0"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ale:pong")
    ratio = atari.acting_section(3, 0.0)["ratio"]
    assert 1.2 < ratio.median < 2.5  # 30 ms over 15, and the time by which a sleep is late


def test_overlapped_training_is_compared_with_serial_training(monkeypatch, capsys, tmp_path):
    cases = {"not learning": ticking(0.01), "serial": ticking(0.03), "overlapped": ticking(0.015)}
    monkeypatch.setattr(atari, "overlap_cases", lambda: cases)
    file = tmp_path / "host.json"
    arguments = ["--sections", "overlap", "--rounds", "3", "--seconds", "0", "--json", str(file)]
    assert host.main(arguments) == 0
    measured = json.loads(file.read_text())["overlap"]
    assert measured["bar"] == ">= 1.05: reached"
    assert 1.2 < measured["ratio"]["median"] < 2.5
    assert measured["serial"]["median"] < measured["overlapped"]["median"]
    assert "ale:pong" in capsys.readouterr().out


def test_a_missing_pytorch_is_reported_and_the_file_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(atari, "nature_case", lambda: ticking(0.002))
    file = tmp_path / "host.json"
    assert host.main(["--sections", "nature", "--rounds", "2", "--json", str(file)]) == 0
    assert "PyTorch: not measured: no torch_python" in capsys.readouterr().out
    assert json.loads(file.read_text())["nature"]["jaxdqn_seconds"]["median"] >= 0.002
    arguments = ["--sections", "nature", "--rounds", "1", "--torch-python", sys.executable]
    if importlib.util.find_spec("torch") is None:
        assert host.main(arguments) == 0
        assert "not measured: No module named 'torch'" in capsys.readouterr().out
    assert host.main(["--sections", "nature", "--torch-python", "no-such-python"]) == 2
    assert "torch_python='no-such-python': must be a Python" in capsys.readouterr().err


def test_both_ways_of_dispatch_take_turns():
    processes = {
        "async": FakePeer(*[{"acting": 4e-3, "training": 8e-3}] * 3),
        "sync": FakePeer(*[{"acting": 2e-3, "training": 8e-3}] * 3),
    }
    result = dispatch.compare_modes(processes, rounds=3)
    assert result["acting"]["async"].median == 250
    assert result["acting"]["sync_over_async"].median == 2.0
    assert result["training"]["sync_over_async"].median == 1.0
    with pytest.raises(RuntimeError, match="dispatch async: it ended"):
        dispatch.compare_modes(processes, rounds=1)


@pytest.mark.slow
def test_both_ways_of_dispatch_are_measured(capsys):
    arguments = ["--sections", "dispatch", "--rounds", "1", "--seconds", "0.01"]
    assert host.main([*arguments, "--cadences", "8,16,2"]) == 0
    output = capsys.readouterr().out
    assert "K=8 B=16 M=2, acting" in output
    assert "K=8 B=16 M=2, training" in output


@pytest.mark.slow
def test_the_cases_of_atari_do_their_work():
    pytest.importorskip("ale_py")
    losses = [float(atari.nature_case(batch_size=2, rows=64).run()) for _ in range(2)]
    assert losses[0] == losses[1] > 0
    cases = atari.acting_cases(2, ("max_num_frames_per_episode=400",), vector_steps=2)
    times = alternate(cases, rounds=1)
    assert list(times) == ["emulator", "forward", "acting"]
    assert cases["acting"].work == 4


@pytest.mark.slow
def test_the_cases_of_overlap_are_iterations_of_the_preset():
    pytest.importorskip("ale_py")
    small = {"replay_ratio": None, "gradient_steps": 1, "batch_size": 2, "warmup_rows": 16,
             "network": "mlp", "hidden_sizes": (4,)}  # fmt: skip
    cases = atari.overlap_cases(2, num_envs=2, rollout_length=4, replay_capacity=256, **small)
    assert list(cases) == ["not learning", "serial", "overlapped"]
    for case in cases.values():
        assert case.work == 2 * 8
    counters, metrics = cases["overlapped"].run()
    before = int(counters.rows.low)  # the next call deletes the array
    counters, _ = cases["overlapped"].run()
    assert int(metrics.gradient_steps) == 2
    assert int(counters.rows.low) - before == 16
