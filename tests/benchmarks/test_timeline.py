"""Time line of environments on the host."""

import itertools

import pytest

from benchmarks import timeline
from benchmarks.timeline import Clock, Flags, Span, durations, record, shares


def test_shares_are_of_the_duration_of_the_thread_that_acts():
    iteration = [
        Span("actions", 0.0, 1.0),
        Span("environments", 1.0, 4.0),
        Span("learner", 0.5, 5.5),
        Span("rows", 4.0, 4.5),
        Span("wait for the learner", 4.5, 5.0),
    ]
    expected = {
        "actions": 0.2, "environments": 0.6, "rows": 0.1, "wait for the learner": 0.1, "learner": 1,
    }  # fmt: skip
    assert durations([iteration]) == [5.0]
    assert shares([iteration, iteration]) == pytest.approx(expected)


def test_the_parts_of_the_thread_that_acts_leave_no_gap():
    clock, time = Clock(), timeline.time.perf_counter
    for _ in range(3):
        clock.acting_starts()
        for _ in range(2):
            clock.stepped(time())
        clock.acting_ends()
    spans = [span for spans in clock.iterations for span in spans]
    assert [span.part for span in spans[:6]] == [
        *("actions", "environments") * 2, "rows", "wait for the learner",
    ]  # fmt: skip
    for one, following in itertools.pairwise(spans):
        assert one.start <= one.end == following.start


@pytest.mark.slow
def test_serial_learning_happens_while_the_thread_that_acts_waits():
    flags = Flags(cadence="4,16,2", iterations=20)
    spans = record(flags, overlap=False)
    assert len(spans) == 20
    assert all([span.part for span in each].count("environments") == 4 for each in spans)
    learning = [span for each in spans for span in each if span.part == "learner"]
    waiting = [span for each in spans for span in each if span.part == "wait for the learner"]
    assert len(learning) == 20
    for one, wait in zip(learning, waiting, strict=True):
        assert wait.start <= one.start < one.end <= wait.end


@pytest.mark.slow
def test_the_command_prints_the_shares_and_draws(tmp_path, capsys):
    out = tmp_path / "line.png"
    arguments = ["--cadence", "4,16,2", "--iterations", "8", "--drawn", "3", "--out", str(out)]
    assert timeline.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "serial" in printed
    assert "overlapped" in printed
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cadence", "4,32"], "must be K,B,M"),
        (["--iterations", "0"], "iterations=0: must be at least 1"),
        (["--iterations", "4", "--drawn", "5"], "drawn=5: must be at most iterations=4"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, tmp_path):
    assert timeline.main([*arguments, "--out", str(tmp_path / "line.png")]) == 2
    assert message in capsys.readouterr().err
