"""Flags of a run over several processes, and explanations of the runtime's messages."""

import signal
import subprocess
import sys

import pytest

from jaxdqn.cli import run
from jaxdqn.cli.launch import supervisor
from jaxdqn.cli.launch.rendezvous import ProcessSpec
from jaxdqn.cli.launch.runtime_errors import Timeouts, explain_abort
from tests.processes import ROOT

TIMEOUTS = Timeouts(heartbeat=10, initialization=30)
INVALID_FLAGS = {
    "no id": (["--coordinator", "h:1", "--num-processes", "2"], "must be given with process_id"),
    "only the id": (["--process-id", "0"], "must be given with coordinator, num_processes"),
    "no port": (
        ["--coordinator", "node1", "--num-processes", "2", "--process-id", "0"],
        "coordinator='node1': must be the address of process 0 as HOST:PORT",
    ),
    "port too high": (
        ["--coordinator", "node1:65536", "--num-processes", "2", "--process-id", "0"],
        "coordinator='node1:65536': must be the address of process 0 as HOST:PORT",
    ),
    "no processes": (
        ["--coordinator", "h:1", "--num-processes", "0", "--process-id", "0"],
        "num_processes=0: must be at least 1",
    ),
    "id too high": (
        ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"],
        "process_id=2: must be from 0 to 1",
    ),
    "both ways": (["--multi-host", "--process-id", "1"], "multi_host=True: must be given without"),
    "explained": (["--multi-host", "--explain"], "explain=True"),
    "slow heart": (["--heartbeat-seconds", "31"], "heartbeat_seconds=31: must be from 1 to 30"),
    "no time": (["--initialization-seconds", "0"], "initialization_seconds=0"),
}


@pytest.mark.parametrize(("argv", "part"), INVALID_FLAGS.values(), ids=INVALID_FLAGS)
def test_invalid_flags_are_rejected_in_one_line(argv, part, capsys, monkeypatch):
    monkeypatch.setattr(run, "supervise", lambda *_: pytest.fail("started"))
    assert run.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_the_parent_does_not_import_jax():
    code = (
        "import sys, jaxdqn.cli.run, jaxdqn.cli.launch.supervisor; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


class StartedError(Exception):
    """Raised in place of a start."""


def test_a_worker_is_started_from_the_installed_package(monkeypatch):
    commands = []

    def start(command, **_):
        commands.append(command)
        raise StartedError

    monkeypatch.setattr(supervisor.subprocess, "Popen", start)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StartedError):
        supervisor.supervise(["cartpole"], None, TIMEOUTS)
    assert commands == [[sys.executable, "-m", "jaxdqn", "run", "cartpole"]]
    # Without a worker the signals are handled as before.
    assert signal.getsignal(signal.SIGTERM) == handler


def test_the_signals_that_stop_a_run_are_forwarded_and_ignored_ones_stay_ignored(monkeypatch):
    sent = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    class Worker:
        stderr = None

        def poll(self):
            return None

        send_signal = staticmethod(sent.append)

    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda *_, **__: Worker())
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        supervisor._Supervisor(["cartpole"], None, TIMEOUTS, None)
        for number in [*numbers, signal.SIGHUP]:
            signal.raise_signal(number)
        assert sent == numbers
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGHUP, before)


ABORT_MESSAGES = {
    "heartbeat": (
        "E1121 10:31:35 1 coordination_service.cc:1520] Barrier failed: UNAVAILABLE: Task 1 "
        "heartbeat timeout. This indicates that the remote task has failed",
        "process 1 on b has not answered for 10 s",
    ),
    "heartbeats of another version": (
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n"
        "/job:jax_worker/replica:0/task:1\nThe tasks have crashed.",
        "process 1 on b has not answered for 10 s",
    ),
    "join": (
        "F1121 client.h:80] DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination."
        "CoordinationService/RegisterTask",
        "not all processes joined n:1 within 30 s",
    ),
    "twice": (
        "ABORTED: 1 unexpectedly tried to connect with a different incarnation.",
        "process_id=1: must be unique, but two processes have it",
    ),
    "coordinator": (
        "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task died",
        "process 0 on a, the coordinator, disconnected",
    ),
}


@pytest.mark.parametrize(("text", "part"), ABORT_MESSAGES.values(), ids=ABORT_MESSAGES)
def test_abort_messages_of_the_runtime_are_explained(text, part):
    explanation = explain_abort(text, ["a", "b"], ProcessSpec("n:1", 2, 0), TIMEOUTS)
    assert part in explanation


def test_an_unknown_abort_message_has_no_explanation():
    assert explain_abort("F1121 client.h:80] something new", [], None, TIMEOUTS) is None
