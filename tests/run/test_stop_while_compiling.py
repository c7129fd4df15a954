"""A stop request while programs are compiled: the run ends soon, and nothing saved is lost."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxdqn.cli import flags
from jaxdqn.errors import RunStopped
from jaxdqn.run import compile as compiling
from jaxdqn.run import program_cache
from jaxdqn.run.interrupt import COMPILING, StopRequest, is_compiling
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import SUMMARY, is_run, read_config
from jaxdqn.storage.jsonl import read_lines
from tests.run.test_run import small
from tests.storage.runs import interrupted
from tests.toys import noisy, quick_runs, shared_programs


class Slow:
    """A jitted function whose compilation takes ``seconds``, and may fail."""

    def __init__(self, seconds, error=None):
        self.seconds, self.error = seconds, error

    def lower(self, *arguments):
        return self

    def compile(self, options):
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.seconds


@pytest.fixture(autouse=True)
def compiled():
    """Wait, after the test, for the threads of stopped runs that still compile."""
    yield
    while is_compiling():
        time.sleep(0.01)


def test_the_wait_for_compilation_ends_with_the_request():
    stop = StopRequest()
    stop.set_deadline(time.perf_counter() + 0.2)
    started = time.perf_counter()
    with pytest.raises(RunStopped, match=r"^max_seconds: the run ended while") as raised:
        compiling.compile_all([(Slow(1.0), ())] * 2, None, stop.check)
    assert raised.value.reason == "deadline"
    assert time.perf_counter() - started < 0.9


def test_an_error_of_one_program_does_not_wait_for_the_others():
    started = time.perf_counter()
    with pytest.raises(ZeroDivisionError):
        compiling.compile_all(
            [(Slow(1.0), ()), (Slow(0.0, ZeroDivisionError()), ())], None, lambda: None
        )
    assert time.perf_counter() - started < 0.9
    assert compiling.compile_all([(Slow(0.1), ()), (Slow(0.0), ())], None, lambda: None) == [
        0.1,
        0.0,
    ]


@pytest.fixture
def endless(monkeypatch):
    """Return ``replace(number)``: make compilation endless, and send this signal during it."""

    def replace(number):
        def compile_all(jitted, options, check):
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
            for _ in range(100):
                time.sleep(0.1)
                check()
            raise AssertionError("not stopped")

        program_cache.clear()
        monkeypatch.setattr(compiling, "compile_all", compile_all)

    yield replace
    program_cache.clear()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_while_a_run_compiles_ends_it_and_its_directory_can_be_resumed(
    tmp_path, number, endless
):
    out = tmp_path / "run"
    endless(number)
    with pytest.raises(RunStopped, match=f"^{number.name}: the run ended while its programs"):
        run(small(), out=out, environment=noisy())
    assert is_run(out)
    assert not (out / SUMMARY).exists()
    assert read_lines(out / "events.jsonl") == [{"event": "stopped", "reason": number.name}]


@pytest.mark.slow
def test_a_signal_while_a_run_compiles_leaves_the_run_that_it_resumes(tmp_path, endless):
    out = tmp_path / "run"
    with shared_programs(tmp_path / "xla"), quick_runs():
        interrupted(out)
    before = {
        file: file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and file.name not in (".lock", "events.jsonl")
    }
    endless(signal.SIGHUP)
    with pytest.raises(RunStopped, match=r"^SIGHUP: "):
        run(read_config(out), out=out, environment=noisy(), resume=True)
    assert {file: file.read_bytes() for file in before} == before
    assert read_lines(out / "events.jsonl")[-1] == {"event": "stopped", "reason": "SIGHUP"}


@pytest.mark.parametrize(("reason", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("deadline", 1)])
def test_a_command_that_was_stopped_ends_without_waiting(reason, code, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(flags.os, "_exit", codes.append)
    ended = threading.Event()

    def command(argv):
        if argv:
            pool = ThreadPoolExecutor(1, COMPILING)
            pool.submit(ended.wait)
            pool.shutdown(wait=False)
        raise RunStopped(reason)

    try:
        assert flags.run_command(command, []) == code
        assert codes == []
        assert flags.run_command(command, ["compiling"]) == code
        assert codes == [code]
    finally:
        ended.set()
    for line in capsys.readouterr().err.splitlines():
        assert line.endswith("before it trained; nothing that was saved is lost")
