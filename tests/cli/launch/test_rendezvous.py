"""Processes that connect before a run, and how failures reach the others."""

import json
import re
import socket
import threading
import time

import pytest

from jaxdqn.cli.launch import rendezvous
from jaxdqn.cli.launch.rendezvous import ProcessSpec
from jaxdqn.errors import RunFailed


@pytest.fixture
def connect():
    """Connect processes, each in a thread; return the ``Peers`` or the error of each."""
    all_results = []

    def connect_and_keep(specs, seconds=1.0):
        all_results.append(connect_all(specs, seconds))
        return all_results[-1]

    yield connect_and_keep
    for results in all_results:
        for peers in results.values():
            if isinstance(peers, rendezvous.Peers):
                peers.close()


def connect_all(specs, seconds):
    results = {}

    def connect_one(key, spec):
        try:
            results[key] = rendezvous.connect(spec, seconds)
        except RunFailed as error:
            results[key] = str(error)

    threads = [threading.Thread(target=connect_one, args=item) for item in enumerate(specs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=seconds + 10)
        assert not thread.is_alive()
    return results


def test_all_processes_connect_and_the_port_is_free_for_the_runtime(connect, port):
    results = connect(
        [ProcessSpec(f"127.0.0.1:{port}", 3, index) for index in (2, 0, 1)], seconds=5.0
    )
    assert all(isinstance(peers, rendezvous.Peers) for peers in results.values())
    socket.create_server(("", port)).close()  # although the connections stay open


def test_another_program_at_the_port_is_not_taken_for_a_process(connect, port):
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
    results = connect(
        [ProcessSpec(f"127.0.0.1:{port}", 2, index) for index in range(2)], seconds=5.0
    )
    visitor.join()
    assert all(isinstance(peers, rendezvous.Peers) for peers in results.values())


INVALID_HELLOS = [
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


def test_an_invalid_first_message_is_not_taken_for_a_process(connect, port, monkeypatch):
    listening = threading.Event()
    listen = rendezvous._listen

    def listen_and_signal(spec):
        server = listen(spec)
        listening.set()
        return server

    monkeypatch.setattr(rendezvous, "_listen", listen_and_signal)
    answers = []

    def visit():
        assert listening.wait(timeout=5)
        for message in INVALID_HELLOS:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as visitor:
                visitor.sendall(json.dumps(message).encode() + b"\n")
                answers.append(visitor.recv(1))
        others.append(connect_all([ProcessSpec(f"127.0.0.1:{port}", 2, 1)], 5.0)[0])

    others = []
    visitor = threading.Thread(target=visit)
    visitor.start()
    results = connect([ProcessSpec(f"127.0.0.1:{port}", 2, 0)], seconds=5.0)
    visitor.join()
    assert answers == [b""] * len(INVALID_HELLOS)  # each connection is closed
    assert isinstance(results[0], rendezvous.Peers)
    assert isinstance(others[0], rendezvous.Peers)
    others[0].close()


def test_missing_processes_are_named_to_all(connect, port):
    results = connect([ProcessSpec(f"127.0.0.1:{port}", 4, index) for index in (0, 2)])
    assert results[0] == results[1]
    assert re.search(r"processes 1, 3 did not join 127.0.0.1:\d+ within 1 s", results[0])


def test_a_duplicate_process_id_is_named_to_all(connect, port):
    results = connect(
        [ProcessSpec(f"127.0.0.1:{port}", 4, index) for index in (0, 1, 1)], seconds=5.0
    )
    assert len(set(results.values())) == 1
    assert "process_id=1: must be unique, but two processes have it" in results[0]


def test_a_different_number_of_processes_is_named_to_all(connect, port):
    specs = [ProcessSpec(f"127.0.0.1:{port}", 2, 0), ProcessSpec(f"127.0.0.1:{port}", 3, 1)]
    results = connect(specs, seconds=5.0)
    assert results[0] == results[1]
    assert "num_processes=3 in process 1" in results[0]
    assert "must be 2, as in process 0" in results[0]


def test_a_port_in_use_is_an_error_of_process_0_and_of_the_others(connect, monkeypatch):
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        results = connect([ProcessSpec(f"127.0.0.1:{port}", 2, index) for index in range(2)])
    assert f"port {port} must be free on" in results[0]
    assert "the program there does not expect this process" in results[1]


def test_a_missing_coordinator_is_named_within_the_time_out(connect, port):
    started = time.monotonic()
    (error,) = connect([ProcessSpec(f"127.0.0.1:{port}", 2, 1)]).values()
    assert time.monotonic() - started < 3
    assert f"coordinator='127.0.0.1:{port}': must be the address where process 0 listens" in error
    assert "within 1 s (initialization_seconds): Connection refused" in error


def test_failures_and_disconnections_are_reported_to_all(connect, port):
    results = connect(
        [ProcessSpec(f"127.0.0.1:{port}", 4, index) for index in range(4)], seconds=5.0
    )
    causes = {index: [] for index in results}
    for index, peers in results.items():
        peers.listen(causes[index].append)
    results[3].done()
    results[3].close()  # after done() no failure
    results[1].report("process 1 on there was killed")
    deadline = time.monotonic() + 5
    while not (causes[0] and causes[2]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert causes[0] == causes[2] == ["process 1 on there was killed"]
    assert causes[1] == causes[3] == []
    results[2]._links[0].shutdown(socket.SHUT_RDWR)
    while len(causes[0]) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert re.match(r"process 2 on \S+ disconnected", causes[0][1])


def test_connections_closed_before_their_threads_start_are_not_failures(connect, port, monkeypatch):
    results = connect(
        [ProcessSpec(f"127.0.0.1:{port}", 2, index) for index in range(2)], seconds=5.0
    )
    start, closed = threading.Thread.start, threading.Event()

    def start_when_closed(thread):
        follow = thread._target

        def wait_and_follow(*args):
            assert closed.wait(timeout=5)
            follow(*args)

        thread._target = wait_and_follow
        start(thread)
        threads.append(thread)

    threads, causes = [], []
    monkeypatch.setattr(threading.Thread, "start", start_when_closed)
    results[1].listen(causes.append)
    results[1].close()
    closed.set()
    for thread in threads:
        thread.join(timeout=5)
    assert causes == []
