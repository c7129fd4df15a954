"""Requests to stop a run, by signals and by a deadline."""

import signal
import threading
import time

import pytest

from jaxdqn.run.interrupt import StopRequest, stop_on_signals


def test_a_second_interrupt_raises_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_does_not_handle_signals():
    found = []

    def work():
        with stop_on_signals() as stop:
            found.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


def test_a_deadline_is_a_request_from_then_on():
    stop = StopRequest()
    stop.set_deadline(time.perf_counter() + 60)
    assert not stop
    stop.set_deadline(time.perf_counter())
    assert stop
    assert stop.reason == "deadline"


def test_a_signal_before_the_deadline_is_the_reason():
    stop = StopRequest()
    stop.handle_signal(signal.SIGTERM, None)
    stop.set_deadline(time.perf_counter())
    assert stop.reason == "SIGTERM"
