"""Connect the parent processes before a run, and report failures to all. Imports no JAX.

Process 0 listens at the coordinator's address. Each other process connects and sends its index,
the number of processes and its host. When all are connected, process 0 stops listening, because
JAX uses the port next. The connections stay open: a process that fails sends the cause, and a
disconnection is detected at once. Messages are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdqn.errors import RunFailed

_MAX_LINE_BYTES = 2**20

_HELLO_SECONDS = 2.0
"""Time for a new connection to send its first message; other programs may connect too."""

_ANSWER_SECONDS = 5.0
"""Additional time to wait for the answer of process 0, which may have started later."""


class ProcessSpec(NamedTuple):
    """One process of a multi-process run."""

    coordinator: str
    """HOST:PORT of process 0."""
    num_processes: int
    process_id: int

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Peers:
    """Open connections: from process 0 to all others, or from another process to process 0."""

    def __init__(self, spec: ProcessSpec, links: dict[int, tuple[str, socket.socket]]) -> None:
        self._spec = spec
        self._hosts = {index: host for index, (host, _) in links.items()}
        self._links = {index: link for index, (_, link) in links.items()}
        self._closed = False

    def listen(self, on_failure: Callable[[str], None]) -> None:
        """Call ``on_failure(cause)`` from another thread for each failure or disconnection."""
        for index, link in self._links.items():
            threading.Thread(
                target=self._follow, args=(index, link, on_failure), daemon=True
            ).start()

    def report(self, cause: str) -> None:
        """Tell all other processes that this one has failed; process 0 forwards the message."""
        self._send_to_all({"failed": cause})

    def done(self) -> None:
        """Tell the connected processes that this one finishes normally."""
        self._send_to_all({"done": True})

    def close(self) -> None:
        """Close the connections, and stop reporting disconnections on this side."""
        self._closed = True
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
            link.close()

    def _follow(self, index: int, link: socket.socket, on_failure: Callable[[str], None]) -> None:
        try:
            link.settimeout(None)
            with link.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "done" in message:
                        return
                    if self._spec.process_id == 0:
                        self._send_to_all(message, but=index)
                    on_failure(message["failed"])
                    return
        except (OSError, ValueError):
            pass
        if self._closed:
            return
        cause = (
            f"process {index} on {self._hosts[index]} disconnected: it was killed, or its host or "
            "network failed"
        )
        if self._spec.process_id == 0:
            self._send_to_all({"failed": cause}, but=index)
        on_failure(cause)

    def _send_to_all(self, message: dict[str, Any], but: int | None = None) -> None:
        for index, link in self._links.items():
            if index != but:
                with contextlib.suppress(OSError):
                    _send(link, message)


def connect(spec: ProcessSpec, seconds: float) -> Peers:
    """Wait until all processes are connected.

    Raises:
        RunFailed: if a process is missing or conflicts with another, on every process that is
            connected, or if this process cannot listen or connect.
    """
    if spec.process_id == 0:
        return _accept_all(spec, time.monotonic() + seconds, seconds)
    return _connect_to_coordinator(spec, time.monotonic() + seconds, seconds)


def _accept_all(spec: ProcessSpec, deadline: float, seconds: float) -> Peers:
    """Accept the connections of all other processes at the coordinator's port."""
    links: dict[int, tuple[str, socket.socket]] = {}
    error = None
    with _listen(spec) as server:
        while error is None and len(links) < spec.num_processes - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link, _ = server.accept()
            except TimeoutError:
                error = _missing(spec, set(links), seconds)
                break
            try:
                index, count, host = _parse_hello(_receive(link, _HELLO_SECONDS))
            except (OSError, ValueError):
                link.close()  # another program
                continue
            error = _conflict(spec, links, index, count, host)
            # A conflicting process gets an answer too; its link must not replace another link.
            links[index if error is None else -1] = (host, link)
    answer = {"accepted": platform.node()} if error is None else {"rejected": error}
    for _, link in links.values():
        with contextlib.suppress(OSError):
            _send(link, answer)
    peers = Peers(spec, links)
    if error is not None:
        peers.close()
        raise RunFailed(error)
    return peers


def _parse_hello(message: dict[str, Any]) -> tuple[int, int, str]:
    """Return index, number of processes and host from a process's first message.

    Raises:
        ValueError: if the message is not from a process of a run.
    """
    index, count, host = (message.get(name) for name in ("process_id", "num_processes", "host"))
    # type() and not isinstance(), since True is an int too.
    if type(index) is not int or type(count) is not int or not isinstance(host, str):
        raise ValueError("not a process")
    # Process 0 does not connect to itself.
    if not 0 < index < count:
        raise ValueError("not the index of a process")
    return index, count, host


def _listen(spec: ProcessSpec) -> socket.socket:
    port = spec.address[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise RunFailed(
            f"coordinator={spec.coordinator!r}: port {port} must be free on {platform.node()}, "
            f"where process 0 runs: {os.strerror(error.errno or 0)}; another run or another "
            "process 0 may be using it"
        ) from error


def _missing(spec: ProcessSpec, present: set[int], seconds: float) -> str:
    absent = [str(index) for index in range(1, spec.num_processes) if index not in present]
    processes = f"process {absent[0]}" if len(absent) == 1 else f"processes {', '.join(absent)}"
    return (
        f"num_processes={spec.num_processes}: {processes} did not join {spec.coordinator} within "
        f"{seconds:g} s (initialization_seconds); not started, or unable to reach this address"
    )


def _conflict(
    spec: ProcessSpec,
    links: dict[int, tuple[str, socket.socket]],
    index: int,
    count: int,
    host: str,
) -> str | None:
    """Return an error message if a new process conflicts with this or a connected one."""
    if count != spec.num_processes:
        return (
            f"num_processes={count} in process {index} on {host}: must be {spec.num_processes}, "
            f"as in process 0 on {platform.node()}"
        )
    if index in links:
        return (
            f"process_id={index}: must be unique, but two processes have it, on {links[index][0]} "
            f"and on {host}"
        )
    return None


def _connect_to_coordinator(spec: ProcessSpec, deadline: float, seconds: float) -> Peers:
    """Connect to process 0, which may not have started yet."""
    host, port = spec.address
    hello = {
        "process_id": spec.process_id,
        "num_processes": spec.num_processes,
        "host": platform.node(),
    }
    reason = "nothing answered"
    while time.monotonic() < deadline:
        try:
            link = socket.create_connection((host, port), timeout=deadline - time.monotonic())
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        try:
            _send(link, hello)
            answer = _receive(link, deadline - time.monotonic() + _ANSWER_SECONDS)
        except (OSError, ValueError):
            answer = {}
        if "accepted" in answer:
            return Peers(spec, {0: (answer["accepted"], link)})
        link.close()
        if "rejected" in answer:
            raise RunFailed(answer["rejected"])
        reason = "the program there does not expect this process; has the run already started?"
        time.sleep(1.0)
    raise RunFailed(
        f"coordinator={spec.coordinator!r}: must be the address where process 0 listens; process "
        f"{spec.process_id} on {platform.node()} could not join within {seconds:g} s "
        f"(initialization_seconds): {reason}"
    )


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    link.sendall(json.dumps(message).encode() + b"\n")


def _receive(link: socket.socket, seconds: float) -> dict[str, Any]:
    """Return the next message.

    Raises:
        OSError, ValueError: if no message arrives in time, or it is not a JSON object.
    """
    deadline, data = time.monotonic() + seconds, b""
    while not data.endswith(b"\n"):
        link.settimeout(max(0.01, deadline - time.monotonic()))
        # One byte at a time: bytes after the line belong to the next reader of the socket.
        byte = link.recv(1)
        if not byte or len(data) > _MAX_LINE_BYTES:
            raise ValueError("incomplete line")
        data += byte
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
