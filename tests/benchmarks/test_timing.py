"""Timing of the benchmarks, with a clock that the test controls."""

import pytest

from benchmarks import timing
from benchmarks.timing import Case, Interval
from tests.clock import Clock


def alternate(clock, cases, **options):
    return timing.alternate(cases, clock=clock, wait=lambda result: result, **options)


def test_times_are_per_unit_of_work():
    clock = Clock()
    cases = {"a": Case(clock.work("a", 6.0), work=3), "b": Case(clock.work("b", 1.0), work=2)}
    times = alternate(clock, cases, rounds=3)
    assert times == {"a": [2.0] * 3, "b": [0.5] * 3}
    assert timing.ratio(times["a"], times["b"]) == Interval(4.0, 4.0, 4.0)


def test_rounds_reverse_their_order_after_two_unmeasured_calls():
    clock = Clock()
    cases = {name: Case(clock.work(name, 1.0)) for name in "ab"}
    alternate(clock, cases, rounds=3)
    assert "".join(clock.order) == "aabb" + "ab" + "ba" + "ab"


def test_a_measurement_repeats_the_call_for_the_requested_duration():
    clock = Clock()
    times = alternate(clock, {"a": Case(clock.work("a", 0.3))}, rounds=2, seconds=1.0)
    assert times["a"] == pytest.approx([0.3, 0.3])
    assert len(clock.order) == 2 + 2 * 4


def test_a_machine_that_drifts_does_not_change_the_ratio():
    clock = Clock()

    def slower(factor):
        return lambda: factor * (1.0 + 0.01 * len(clock.order))

    cases = {"a": Case(clock.work("a", slower(2.0))), "b": Case(clock.work("b", slower(1.0)))}
    times = alternate(clock, cases, rounds=20)
    assert timing.spread(times["a"]).high > 1.2 * timing.spread(times["a"]).low
    found = timing.ratio(times["a"], times["b"])
    assert found.low <= 2.0 <= found.high
    assert found.high - found.low < 0.05


def test_the_clock_is_read_after_the_result_is_computed():
    clock = Clock()

    def wait(seconds):
        clock.now += seconds

    times = timing.alternate({"a": Case(lambda: 5.0)}, rounds=1, clock=clock, wait=wait)
    assert times["a"] == [5.0]


def test_zero_rounds_are_rejected():
    with pytest.raises(ValueError, match="rounds=0: must be at least 1"):
        timing.alternate({}, rounds=0)


@pytest.mark.parametrize(
    ("count", "rank"),
    # Published ranks of the 95 % interval of a median; below six values, minimum and maximum.
    [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (30, 10)],
)
def test_the_interval_of_a_median_has_the_published_ranks(count, rank):
    values = [float(value) for value in range(count, 0, -1)]
    found = timing.median_interval(values)
    assert found == Interval((count + 1) / 2, rank, count + 1 - rank)


def test_spread_is_median_minimum_and_maximum():
    assert timing.spread([3.0, 1.0, 10.0, 2.0]) == Interval(2.5, 1.0, 10.0)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (Interval(1.2, 1.1, 1.3), "reached"),
        (Interval(1.2, 1.1, 1.4), "undecided"),
        (Interval(1.5, 1.4, 1.6), "missed"),
    ],
)
def test_a_bar_is_reached_only_by_both_ends_of_the_interval(measured, expected):
    assert timing.verdict(measured, 1.3, higher_is_better=False) == f"<= 1.3: {expected}"
