"""Requests to stop a run, by signals and by a deadline."""

import signal
import threading
import time

import pytest

from jaxdqn.config.options import CHECKPOINT_SIGNALS
from jaxdqn.errors import RunStopped
from jaxdqn.run.interrupt import StopRequest, stop_on_signals


def test_a_second_interrupt_raises_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", CHECKPOINT_SIGNALS)
def test_signals_of_schedulers_and_terminals_are_requests(name):
    before = signal.getsignal(signal.Signals[name])
    with stop_on_signals() as stop:
        signal.raise_signal(signal.Signals[name])
        assert stop.reason == name
    assert signal.getsignal(signal.Signals[name]) is before


def test_only_the_chosen_signals_are_handled():
    with stop_on_signals(("SIGUSR2",)) as stop:
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        signal.raise_signal(signal.SIGUSR2)
        assert stop.reason == "SIGUSR2"
    assert stop.reason == "SIGUSR2"
    with stop_on_signals(()) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT"


def test_an_ignored_signal_stays_ignored(monkeypatch):
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_request_before_training_ends_the_run():
    stop = StopRequest()
    stop.check()
    stop.handle_signal(signal.SIGHUP, None)
    with pytest.raises(RunStopped, match=r"^SIGHUP: "):
        stop.check()


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
