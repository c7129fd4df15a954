"""Signals to a real process while it compiles."""

import signal
import time

import pytest

from jaxdqn.storage.directory import SUMMARY, is_run
from jaxdqn.storage.jsonl import read_lines
from tests.processes import start  # noqa: F401


@pytest.mark.slow
def test_a_signal_while_programs_are_compiled_ends_the_process_within_ten_seconds(
    tmp_path,
    start,  # noqa: F811
):
    out = tmp_path / "run"
    process = start(
        "rainbow", "--env", "Breakout-MinAtar", "--out", out,
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "xla"), XLA_FLAGS="",
    )  # fmt: skip
    assert process.stdout.readline().endswith("; compiling\n")
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - sent < 10
    assert process.returncode == 128 + signal.SIGHUP
    assert errors.splitlines()[-1].startswith("error: SIGHUP: the run ended while its programs")
    assert is_run(out)
    assert not (out / SUMMARY).exists()
    assert read_lines(out / "events.jsonl") == [{"event": "stopped", "reason": "SIGHUP"}]
