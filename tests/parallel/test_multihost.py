"""Many processes as one: how they meet, what they compute, and what they say when one fails.

Processes are started by the command line and speak over the loopback.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest
import yaml

from jaxdqn.cli import run
from jaxdqn.cli.launch import rendezvous, supervisor
from jaxdqn.cli.launch.rendezvous import Place
from jaxdqn.errors import RunFailed
from jaxdqn.parallel import multihost
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.storage.resume import read_state
from tests.parallel.test_mapping_laws import assert_identical

ROOT = Path(__file__).resolve().parents[2]
TIMEOUTS = supervisor.Timeouts(heartbeat=10, initialization=30)
SHORT = [
    "cartpole", "--total-rows", "10000", "--log-every", "1000", "--eval-every", "4000",
    "--checkpoint-every", "2000", "--eval-episodes", "10",
]  # fmt: skip
ENDLESS = [*SHORT, "--total-rows", "1000000000", "--deterministic"]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@pytest.fixture
def start(tmp_path_factory):
    """Start commands, and end what is left of them."""
    started = []
    # One for all of these tests: most run the same programs.
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "xla"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }

    def command(*argv, program=("-m", "experiments.run"), **environment):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, argv)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **defaults, **environment},
        )
        started.append(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def pair(start, port):
    """Start two processes of two devices each."""

    def both(*argv, **environment):
        place = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2]
        flags = [*argv, "--virtual-devices", 2, "--devices", 4, *place]
        return [start(*flags, "--process-id", index, **environment) for index in range(2)]

    return both


def ends(processes, *, within=150):
    """Wait for processes; return their exit codes and last lines on stderr, and the seconds."""
    started = time.monotonic()
    said = [process.communicate(timeout=within)[1] for process in processes]
    seconds = time.monotonic() - started
    codes = [process.returncode for process in processes]
    return codes, [text.strip().splitlines()[-1] if text.strip() else "" for text in said], seconds


def worker_of(process):
    (child,) = psutil.Process(process.pid).children()
    return child


def await_checkpoint(out, processes, step=1, within=150):
    deadline = time.monotonic() + within
    while max(steps_of(out / CHECKPOINTS), default=0) < step:
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def records(out, name):
    lines = read_lines(out / name)
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def assert_same_run(one, other):
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(one, name) == records(other, name)
    states = [read_state(out, read_config(out))[0] for out in (one, other)]
    assert states[0].step == states[1].step
    assert_identical(states[0].state, states[1].state)


BAD = {
    "no id": (["--coordinator", "h:1", "--num-processes", "2"], "must come with process_id"),
    "only the id": (["--process-id", "0"], "must come with coordinator, num_processes"),
    "no port": (
        ["--coordinator", "node1", "--num-processes", "2", "--process-id", "0"],
        "coordinator='node1': must be HOST:PORT",
    ),
    "port too high": (
        ["--coordinator", "node1:65536", "--num-processes", "2", "--process-id", "0"],
        "coordinator='node1:65536': must be HOST:PORT",
    ),
    "no processes": (
        ["--coordinator", "h:1", "--num-processes", "0", "--process-id", "0"],
        "num_processes=0: must be at least 1",
    ),
    "id too high": (
        ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"],
        "process_id=2: must be from 0 to 1",
    ),
    "both ways": (["--multi-host", "--process-id", "1"], "multi_host=True: must come without"),
    "explained": (["--multi-host", "--explain"], "explain=True"),
    "slow heart": (["--heartbeat-seconds", "31"], "heartbeat_seconds=31: must be from 1 to 30"),
    "no time": (["--initialization-seconds", "0"], "initialization_seconds=0"),
}


@pytest.mark.parametrize(("argv", "part"), BAD.values(), ids=BAD)
def test_flags_that_do_not_fit_are_refused_in_one_line(argv, part, capsys, monkeypatch):
    monkeypatch.setattr(run, "supervise", lambda *_: pytest.fail("started"))
    assert run.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_the_parent_does_not_wait_for_jax():
    code = (
        "import sys, jaxdqn.cli.run, jaxdqn.cli.launch.supervisor; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def meeting():
    """Let processes meet, each in a thread; give what each got."""
    all_got = []

    def meet(places, seconds=1.0):
        all_got.append(_meet(places, seconds))
        return all_got[-1]

    yield meet
    for got in all_got:
        for peers in got.values():
            if isinstance(peers, rendezvous.Peers):
                peers.close()


def _meet(places, seconds):
    got = {}

    def go(key, place):
        try:
            got[key] = rendezvous.meet(place, seconds)
        except RunFailed as error:
            got[key] = str(error)

    threads = [threading.Thread(target=go, args=item) for item in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=seconds + 10)
        assert not thread.is_alive()
    return got


def test_all_meet_and_the_port_is_left_to_the_runtime(meeting, port):
    got = meeting([Place(f"127.0.0.1:{port}", 3, index) for index in (2, 0, 1)], seconds=5.0)
    assert all(isinstance(peers, rendezvous.Peers) for peers in got.values())
    socket.create_server(("", port)).close()  # though the connections stay


def test_a_visitor_at_the_port_is_not_taken_for_a_process(meeting, port):
    def visit():
        for _ in range(20):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as visitor:
                    visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except OSError:
                time.sleep(0.05)

    visitor = threading.Thread(target=visit)
    visitor.start()
    time.sleep(0.1)
    got = meeting([Place(f"127.0.0.1:{port}", 2, index) for index in range(2)], seconds=5.0)
    visitor.join()
    assert all(isinstance(peers, rendezvous.Peers) for peers in got.values())


NOT_OURS = [
    {"process_id": [1], "num_processes": 2, "host": "h"},
    {"process_id": "1", "num_processes": 2, "host": "h"},
    {"process_id": True, "num_processes": 2, "host": "h"},
    {"process_id": 1.0, "num_processes": 2, "host": "h"},
    {"process_id": 0, "num_processes": 2, "host": "h"},
    {"process_id": -1, "num_processes": 2, "host": "h"},
    {"process_id": 2, "num_processes": 2, "host": "h"},
    {"process_id": 1, "num_processes": None, "host": "h"},
    {"process_id": 1, "num_processes": 2, "host": 3},
    {"num_processes": 2, "host": "h"},
]


def test_who_says_nothing_that_a_process_would_is_not_taken_for_one(meeting, port, monkeypatch):
    listening = threading.Event()
    listen = rendezvous._listening

    def listen_and_say_so(place):
        server = listen(place)
        listening.set()
        return server

    monkeypatch.setattr(rendezvous, "_listening", listen_and_say_so)
    answers = []

    def visit():
        assert listening.wait(timeout=5)
        for said in NOT_OURS:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as visitor:
                visitor.sendall(json.dumps(said).encode() + b"\n")
                answers.append(visitor.recv(1))
        places.append(_meet([Place(f"127.0.0.1:{port}", 2, 1)], 5.0)[0])

    places = []
    visitor = threading.Thread(target=visit)
    visitor.start()
    got = meeting([Place(f"127.0.0.1:{port}", 2, 0)], seconds=5.0)
    visitor.join()
    assert answers == [b""] * len(NOT_OURS)  # each is shown the door
    assert isinstance(got[0], rendezvous.Peers)
    assert isinstance(places[0], rendezvous.Peers)
    places[0].close()


def test_uneven_devices_are_said_before_anything_passes(monkeypatch):
    owners = (0, 0, 1, 2, 2, 2)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        jax, "devices", lambda: [SimpleNamespace(process_index=owner) for owner in owners]
    )
    monkeypatch.setattr(
        multihost.multihost_utils, "process_allgather", lambda _: pytest.fail("something passed")
    )
    message = (
        "devices=6: must be as many in each process, but there are 2 in process 0, 1 in process 1, "
        "3 in process 2; this is process 0 of 3"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        multihost.host_names()


def test_who_did_not_come_is_named_to_all(meeting, port):
    got = meeting([Place(f"127.0.0.1:{port}", 4, index) for index in (0, 2)])
    assert got[0] == got[1]
    assert re.search(r"processes 1, 3 did not join 127.0.0.1:\d+ within 1 s", got[0])


def test_two_with_one_id_are_named_to_all(meeting, port):
    got = meeting([Place(f"127.0.0.1:{port}", 4, index) for index in (0, 1, 1)], seconds=5.0)
    assert len(set(got.values())) == 1
    assert "process_id=1: must be of one process, not of two" in got[0]


def test_another_number_of_processes_is_named_to_all(meeting, port):
    places = [Place(f"127.0.0.1:{port}", 2, 0), Place(f"127.0.0.1:{port}", 3, 1)]
    got = meeting(places, seconds=5.0)
    assert got[0] == got[1]
    assert "num_processes=3 in process 1" in got[0]
    assert "must be 2, as in process 0" in got[0]


def test_a_port_in_use_is_refused_by_process_0_and_not_joined_by_others(meeting, monkeypatch):
    monkeypatch.setattr(rendezvous, "_LATER", 0.5)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        got = meeting([Place(f"127.0.0.1:{port}", 2, index) for index in range(2)])
    assert f"port {port} must be free on" in got[0]
    assert "what answers there does not wait for this process" in got[1]


def test_a_coordinator_that_is_not_there_is_named_within_the_time_out(meeting, port):
    started = time.monotonic()
    (said,) = meeting([Place(f"127.0.0.1:{port}", 2, 1)]).values()
    assert time.monotonic() - started < 3
    assert f"coordinator='127.0.0.1:{port}': must be where process 0 waits" in said
    assert "within 1 s (initialization_seconds): Connection refused" in said


def test_a_failure_is_told_to_all_and_a_connection_that_breaks_is_one(meeting, port):
    got = meeting([Place(f"127.0.0.1:{port}", 4, index) for index in range(4)], seconds=5.0)
    heard = {index: [] for index in got}
    for index, peers in got.items():
        peers.listen(heard[index].append)
    got[3].done()
    got[3]._links[0].close()  # after what it said, no failure
    got[1].report("process 1 on there was killed")
    deadline = time.monotonic() + 5
    while not (heard[0] and heard[2]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heard[0] == heard[2] == ["process 1 on there was killed"]
    assert heard[1] == []
    got[2]._links[0].shutdown(socket.SHUT_RDWR)
    while len(heard[0]) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert re.match(r"process 2 on \S+ is gone", heard[0][1])


SAID = {
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
        "process_id=1: two processes have it",
    ),
    "coordinator": (
        "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task died",
        "process 0 on a, the coordinator, is gone",
    ),
}


@pytest.mark.parametrize(("text", "part"), SAID.values(), ids=SAID)
def test_what_the_runtime_says_becomes_plain_words(text, part):
    said = supervisor.translate(text, ["a", "b"], Place("n:1", 2, 0), TIMEOUTS)
    assert part in said


def test_what_is_not_understood_is_not_explained():
    assert supervisor.translate("F1121 client.h:80] something new", [], None, TIMEOUTS) is None


def test_blocks_pass_whole_in_pieces_of_any_size():
    blocks = [np.arange(n, dtype=np.uint8) + n for n in (3, 0, 7, 1, 16)]
    sizes = [block.size for block in blocks]
    stream = np.concatenate(blocks)
    for piece in range(1, 30):
        filled = [np.zeros_like(block) for block in blocks]
        for begin in range(0, stream.size, piece):
            part = stream[begin : begin + piece]
            for number, inside, place in multihost._overlaps(sizes, begin, begin + part.size):
                filled[number][inside] = part[place]
        for got, wanted in zip(filled, blocks, strict=True):
            np.testing.assert_array_equal(got, wanted)


TRANSFER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxdqn.parallel import multihost
jax.config.update("jax_num_cpu_devices", 4)
multihost.join(sys.argv[1], 2, int(sys.argv[2]))
multihost._PIECE = 40  # so that everything passes in many pieces
lead = jax.process_index() == 0
mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"))
rng = np.random.default_rng(0)
odd = np.array([-0.0, np.nan, -np.inf, 1e-45], np.float32).repeat(4).reshape(4, 4)
leaves = {
    "odd floats": (odd, P("a", "b")),
    "bool": (rng.random((8, 3)) > 0.5, P(("a", "b"))),
    "bfloat16": (np.asarray(jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2)), P("a")),
    "whole": (rng.integers(0, 99, (3, 5), np.int32), P()),
    "scalar": (np.int32(7), P()),
    "second axis": (rng.random((3, 4), np.float32), P(None, "a")),
    "empty": (np.zeros((4, 0), np.float32), P("a")),
}
values = {name: value for name, (value, _) in leaves.items()}
layouts = {name: NamedSharding(mesh, spec) for name, (_, spec) in leaves.items()}
shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), values)
made = multihost.broadcast_sharded(values if lead else shapes, layouts)
for name, array in made.items():
    assert array.sharding == layouts[name], name
    for shard in array.addressable_shards:
        assert np.asarray(shard.data).tobytes() == values[name][shard.index].tobytes(), name
back = multihost.gather(made)
assert (back is not None) == lead
for name in values if lead else ():
    assert back[name].tobytes() == values[name].tobytes(), name
long = "x" * 5000
assert multihost.broadcast(lambda: {"long": long, "one": 1}) == {"long": long, "one": 1}
def refuse():
    assert lead
    raise ValueError("no")
def fail():
    raise OSError(28, "disk full", "file")
for act, kind, said in ((refuse, ValueError, "no"), (fail, OSError, "disk full")):
    try:
        multihost.broadcast(act)
    except kind as error:
        assert said in str(error)
    else:
        raise AssertionError(kind)
assert multihost.agree(np.float32(-0.0 if lead else 1.0)).tobytes() == np.float32(-0.0).tobytes()
assert multihost.first_reason(None) is None
assert multihost.first_reason(None if lead else "SIGTERM") == "SIGTERM"
assert multihost.first_reason("SIGINT" if lead else "deadline") == "SIGINT"
assert len(multihost.host_names()) == 2
multihost.check_same({"seed": 0})
try:
    multihost.check_same({"seed": 0 if lead else 3})
except ValueError as error:
    assert not lead and "seed=3: must be 0, as in process 0" in str(error)
else:
    assert lead
print("all well")
"""


def test_arrays_and_decisions_pass_between_processes_unchanged(start, port):
    flags = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        start(f"127.0.0.1:{port}", index, program=("-c", TRANSFER), **flags) for index in range(2)
    ]
    for process in processes:
        said, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint
        assert "all well" in said


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four_to_the_bit(pair, start, tmp_path):
    """Through the command line."""
    out, flags = tmp_path / "two", [*SHORT, "--total-rows", 5000, "--deterministic"]
    processes = pair(*flags, "--out", out)
    alone = ["--virtual-devices", 4, "--devices", 4, "--out", tmp_path / "one"]
    processes.append(start(*flags, *alone))
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert "2 processes with 4 cpu devices" in said[0][0]
    assert "not solved" in said[0][0]
    # Of the other process nothing but the runtime's own lines.
    assert "evaluation" not in said[1][0]
    assert "cpu devices" not in said[1][0]
    assert json.loads((out / "summary.json").read_text())["processes"] == 2
    assert_same_run(out, tmp_path / "one")


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_others_with_its_name(pair, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    worker_of(processes[1]).kill()
    codes, lines, seconds = ends(processes)
    assert codes == [1, 1]
    assert seconds < 30
    assert re.match(r"error: process 1 on \S+ was killed by SIGKILL", lines[0])
    assert "process 0 on" in lines[0]
    assert "cannot go on without it; with --resume" in lines[0]
    assert re.match(r"error: process 1 on \S+ was killed by SIGKILL", lines[1])


@pytest.mark.slow
@pytest.mark.parametrize("which", ["worker", "parent"])
def test_the_coordinator_killed_ends_the_others_with_its_name(pair, tmp_path, which):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    worker = worker_of(processes[0])
    (worker if which == "worker" else processes[0]).kill()
    codes, lines, seconds = ends(processes)
    assert seconds < 30
    assert codes == [1 if which == "worker" else -signal.SIGKILL, 1]
    what = "was killed by SIGKILL" if which == "worker" else "is gone"
    assert re.match(rf"error: process 0 on \S+ {what}", lines[1])
    # A worker does not outlive its parent.
    worker.wait(timeout=10)


@pytest.mark.slow
def test_a_process_that_hangs_is_found_by_its_heartbeat(pair, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run", "--heartbeat-seconds", 5)
    await_checkpoint(tmp_path / "run", processes)
    worker = worker_of(processes[1])
    worker.suspend()
    codes, lines, seconds = ends(processes[:1])
    assert codes == [1]
    assert seconds < 40
    assert re.match(r"error: process 1 on \S+ has not answered for 5 s", lines[0])
    worker.kill()


@pytest.mark.slow
def test_a_signal_to_any_process_ends_all_at_one_chunk_with_a_checkpoint(pair, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, _, _ = ends(processes)
    assert codes == [0, 0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["interrupted"], summary["ended_by"]) == (True, "SIGTERM")
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["chunk"]
    assert max(steps_of(tmp_path / "run" / CHECKPOINTS)) == last


@pytest.mark.slow
def test_killed_and_resumed_in_other_processes_is_never_stopped(pair, start, tmp_path):
    flags = [*SHORT, "--total-rows", 30000, "--deterministic"]
    one, whole = tmp_path / "run", tmp_path / "whole"
    alone = [*flags, "--virtual-devices", 4, "--devices", 4, "--resume", "--out"]
    processes = pair(*flags, "--out", one)
    await_checkpoint(one, processes, 4)
    worker_of(processes[0]).kill()
    ends(processes)
    process = start(*alone, one)
    await_checkpoint(one, [process], 10)
    process.kill()
    process.communicate()
    processes = pair(*flags, "--resume", "--out", one)
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "resumes from" in said[0][0]
    assert "not bitwise identical" not in said[0][0]
    codes, lines, _ = ends([start(*alone, whole)])
    assert codes == [0], lines
    assert_same_run(one, whole)


@pytest.mark.slow
def test_by_the_mean_of_the_runtime_they_agree_within_rounding(pair, start, tmp_path):
    # One gradient step: from the second on, one flipped argmax may part the two.
    flags = [
        *SHORT, "--total-rows", 1056, "--log-every", 32, "--eval-every", 0,
        "--checkpoint-every", 32,
    ]  # fmt: skip
    two, one = tmp_path / "two", tmp_path / "one"
    alone = ["--virtual-devices", 4, "--devices", 4, "--out", one]
    processes = [*pair(*flags, "--out", two), start(*flags, *alone)]
    codes, lines, _ = ends(processes)
    assert codes == [0, 0, 0], lines
    metrics = [records(out, "metrics.jsonl") for out in (two, one)]
    assert [[line["gradient_steps"] for line in each] for each in metrics] == [[1], [1]]
    for name, value in metrics[0][0].items():
        np.testing.assert_allclose(value, metrics[1][0][name], rtol=1e-6)
    # What the averaged gradient left behind. Adam's first step hardly says more than its sign,
    # its moments do.
    states = [read_state(out, read_config(out))[0].state for out in (two, one)]
    leaves = [jax.tree.leaves((state.agent.params, state.agent.opt_state)) for state in states]
    for leaf, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-6 * np.abs(other).max())
    for leaf in leaves[0]:
        assert (np.asarray(leaf) == np.asarray(leaf)[:1]).all()  # in every replica the same


@pytest.mark.slow
def test_cartpole_is_solved_by_two_processes(pair, tmp_path):
    codes, lines, _ = ends(pair("cartpole", "--out", tmp_path / "run", XLA_FLAGS=""), within=600)
    assert codes == [0, 0], lines
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["solved"]
    assert (summary["processes"], summary["devices"]) == (2, 4)


@pytest.mark.slow
def test_one_more_process_does_not_harm_a_run(pair, start, port, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    place = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2]
    late = [
        start(*ENDLESS, *place, "--process-id", index, "--initialization-seconds", 2)
        for index in range(2)
    ]
    codes, lines, seconds = ends(late)
    assert codes == [1, 1]
    assert seconds < 12
    assert "must be free" in lines[0]
    assert "a run that has begun?" in lines[1]
    assert [process.poll() for process in processes] == [None, None]


UNEVEN = ["--num-envs", "30", "--batch-size", "126"]  # which three devices divide
REFUSED = {
    "another seed": ([[], ["--seed", "3"]], [1, 2], "seed=3: must be 0, as in process 0"),
    "too few devices": ([["--devices", "2"]] * 2, [2, 2], "devices=2: must be 4"),
    "population": ([["--num-seeds", "4"]] * 2, [2, 2], "num_seeds=4: must be 1 with 2 processes"),
    "pmap": ([["--mapping", "pmap"]] * 2, [2, 2], "mapping='pmap': must be 'shard_map'"),
    "uneven": (
        [["--devices", "3", *UNEVEN], ["--devices", "3", *UNEVEN, "--virtual-devices", "1"]],
        [2, 2],
        "devices=3: must be as many in each process, but there are 2 in process 0, 1 in process 1",
    ),
    "directory in use": ([[]] * 2, [2, 2], "must be a new or an empty directory"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_on_all_by_name(case, start, port, tmp_path):
    more, wanted, part = REFUSED[case]
    out = tmp_path / "run"
    if case == "directory in use":
        out.mkdir()
        (out / "mine").touch()
    processes = [
        start(
            *SHORT, "--virtual-devices", 2, "--devices", 4, *more[index], "--out", out,
            "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", index,
        )
        for index in range(2)
    ]  # fmt: skip
    codes, lines, seconds = ends(processes)
    assert codes == wanted
    assert seconds < 60
    assert all(part in line for line in lines)


def slurm(index, port):
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_in_a_cluster_that_jax_finds_a_death_is_told_too(start, port, tmp_path, victim):
    flags = [*ENDLESS, "--virtual-devices", 2, "--devices", 4, "--multi-host"]
    processes = [
        start(*flags, "--out", tmp_path / "run", **slurm(index, port)) for index in range(2)
    ]
    await_checkpoint(tmp_path / "run", processes)
    worker_of(processes[victim]).kill()
    codes, lines, seconds = ends(processes)
    assert codes == [1, 1]
    assert seconds < 40
    what = "is gone" if victim == 0 else "has not answered for 10 s"
    assert re.match(rf"error: process {victim} on \S+ ?.*{what}", lines[1 - victim])


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_in_a_cluster_that_jax_finds_who_is_missing_ends_the_others(start, port, index):
    flags = [*SHORT, "--multi-host", "--initialization-seconds", 8]
    codes, lines, seconds = ends([start(*flags, **slurm(index, port))])
    assert codes == [1]
    assert seconds < 18
    assert "not all processes joined the coordinator within 8 s" in lines[0]


def test_where_there_is_no_cluster_jax_finds_none(start):
    codes, lines, _ = ends([start(*SHORT, "--multi-host")])
    assert codes == [2]
    assert lines[0].startswith("error: multi_host=True: must run in a cluster that JAX knows")


@pytest.fixture
def slurm_stand_ins(tmp_path):
    """Write stand-ins for Slurm's commands, and return the environment that finds them."""
    place = tmp_path / "bin"
    place.mkdir()
    scripts = {
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol; [ "$1" = show ] && echo 127.0.0.1 || true',
        "srun": (
            '[[ "$1" = --kill-on-bad-exit=1 ]] && shift\n'
            'for i in 0 1; do SLURM_PROCID=$i "$@" & all+=($!); done\n'
            'for one in "${all[@]}"; do wait "$one" || code=$?; done; exit "${code:-0}"'
        ),
        "python": f'exec {sys.executable} "$@"',
    }
    for name, text in scripts.items():
        (place / name).write_text(f"#!/bin/bash\n{text}\n")
        (place / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{place}:{os.environ['PATH']}",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "jaxdqn",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
    }


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", ROOT / "docs/cluster/slurm.sh"], check=True)


@pytest.mark.slow
def test_the_slurm_script_runs_and_goes_on(slurm_stand_ins, port, tmp_path):
    """Its first job is out of time at once and is queued again; the second ends the run."""
    out = tmp_path / "run"
    environment = {**slurm_stand_ins, "OUT": str(out), "PORT": str(port)}
    script = ["bash", ROOT / "docs/cluster/slurm.sh", *SHORT, "--virtual-devices", "2"]
    for more in (["--max-seconds", "1"], []):
        done = subprocess.run(
            [*script, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["processes"], summary["devices"]) == (2, 4)
    assert not summary["interrupted"]
    calls = (tmp_path / "scontrol").read_text().splitlines()
    assert calls == ["show hostnames node[1-2]", "requeue 4242", "show hostnames node[1-2]"]


def test_the_manifest_holds_together_and_its_command_is_understood():
    manifest = yaml.safe_load((ROOT / "docs/cluster/jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = manifest["spec"]
    assert spec["network"]["enableDNSHostnames"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry for entry in container["env"]}
    # Pods are named NAME-REPLICATEDJOB-JOB-POD, under the network's subdomain.
    name, subdomain = manifest["metadata"]["name"], spec["network"]["subdomain"]
    coordinator = given["COORDINATOR"]["value"]
    (port,) = [entry["containerPort"] for entry in container["ports"]]
    assert coordinator == f"{name}-{replicated['name']}-0-0.{subdomain}:{port}"
    index = given["PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job["completionMode"] == "Indexed"
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert container["command"] == ["python", "-m", "experiments.run"]
    values = {"$(COORDINATOR)": coordinator, "$(PROCESS_ID)": "1"}
    argv = [values.get(argument, argument) for argument in container["args"]]
    _, flags = run.read_flags(argv)
    config = run.config_from(flags)
    place = supervisor.place_of(
        flags.coordinator, flags.num_processes, flags.process_id, flags.multi_host
    )
    assert place == Place(coordinator, 2, 1)
    assert job["parallelism"] == job["completions"] == place.num_processes
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert config.devices == place.num_processes * gpus
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert flags.resume
    assert flags.out.startswith(mounts["runs"] + "/")
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
