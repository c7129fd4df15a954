"""Cost of checkpoints and of the guard."""

import pytest

from benchmarks import reliability


@pytest.mark.slow
def test_checkpoints_are_measured_with_a_replay_of_the_requested_size(tmp_path):
    measured = reliability.measure_checkpoints(0.004, rounds=2, directory=str(tmp_path))
    assert measured["replay_bytes"] == pytest.approx(4e6, rel=0.1)
    assert 0 < measured["blocked_seconds"].median <= measured["write_seconds"].median
    assert measured["blocked_over_copy"].median > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_guard_adds_operations_to_the_compiled_step():
    measured = reliability.measure_guard(rounds=1, iterations=20)
    assert measured["operations"]["skip"] > measured["operations"]["off"] > 50
    assert measured["on_over_off"].median > 0
