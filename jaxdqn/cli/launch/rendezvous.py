"""The processes of a run meet before it begins, and hear of each other's end. Imports no JAX.

Process 0 listens at the coordinator's address; each other process connects, says who it is, and
timeouts. When all are there the port is left to JAX, and the connections stay: a process that fails
says why, and one that is gone is missed at once. What is sent are lines of JSON.
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

_LONGEST = 2**20
"""Bytes of a line."""

_SECONDS_TO_SPEAK = 2.0
"""For what has connected to say who it is: a port that is open is visited by others too."""


_LATER = 5.0
"""Seconds to wait longer for process 0's answer than for itself: it may have begun later."""


class Place(NamedTuple):
    """Where a process stands among the others."""

    coordinator: str
    """HOST:PORT"""
    num_processes: int
    process_id: int

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Peers:
    """The connections that stay: of process 0 to all others, of each other to process 0."""

    def __init__(self, place: Place, links: dict[int, tuple[str, socket.socket]]) -> None:
        self._place = place
        self._names = {number: host for number, (host, _) in links.items()}
        self._links = {number: link for number, (_, link) in links.items()}

    def listen(self, heard: Callable[[str], None]) -> None:
        """Call ``heard(cause)`` from another thread if a process fails, or is gone."""
        for number, link in self._links.items():
            threading.Thread(target=self._follow, args=(number, link, heard), daemon=True).start()

    def report(self, cause: str) -> None:
        """Tell all others that this process has failed."""
        self._pass_on({"failed": cause})

    def done(self) -> None:
        """Tell all others that this process has ended as it should."""
        self._pass_on({"done": True})

    def close(self) -> None:
        """Break the connections."""
        for link in self._links.values():
            link.close()

    def _follow(self, number: int, link: socket.socket, heard: Callable[[str], None]) -> None:
        link.settimeout(None)
        try:
            with link.makefile("rb") as lines:
                for line in lines:
                    said = json.loads(line)
                    if "done" in said:
                        return
                    if self._place.process_id == 0:
                        self._pass_on(said, but=number)
                    heard(said["failed"])
                    return
        except (OSError, ValueError):
            pass
        cause = (
            f"process {number} on {self._names[number]} is gone: it was killed, or its host or "
            "network failed"
        )
        if self._place.process_id == 0:
            self._pass_on({"failed": cause}, but=number)
        heard(cause)

    def _pass_on(self, said: dict[str, Any], but: int | None = None) -> None:
        for number, link in self._links.items():
            if number != but:
                with contextlib.suppress(OSError):
                    _say(link, said)


def meet(place: Place, seconds: float) -> Peers:
    """Wait until all processes are there.

    Raises:
        RunFailed: naming what is missing or wrong, on every process that has been reached.
    """
    if place.process_id == 0:
        return _call(place, time.monotonic() + seconds, seconds)
    return _answer(place, time.monotonic() + seconds, seconds)


def _call(place: Place, deadline: float, seconds: float) -> Peers:
    """Wait at the coordinator's port for the other processes."""
    here: dict[int, tuple[str, socket.socket]] = {}
    complaint = None
    with _listening(place) as listening:
        while complaint is None and len(here) < place.num_processes - 1:
            listening.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link, _ = listening.accept()
            except TimeoutError:
                complaint = _missing(place, set(here), seconds)
                break
            try:
                said = _hear(link, _SECONDS_TO_SPEAK)
                number, count, host = _who(said)
            except (OSError, ValueError):
                link.close()  # not one of ours
                continue
            complaint = _objection(place, here, number, count, host)
            here[number if complaint is None else -1] = (host, link)
    said = {"met": platform.node()} if complaint is None else {"refused": complaint}
    for _, link in here.values():
        with contextlib.suppress(OSError):
            _say(link, said)
    peers = Peers(place, here)
    if complaint is not None:
        peers.close()
        raise RunFailed(complaint)
    return peers


def _who(said: dict[str, Any]) -> tuple[int, int, str]:
    """Return the number of a process, how many it says there are, and its host.

    Raises:
        ValueError: if this is not what one of ours says.
    """
    number, count, host = (said.get(name) for name in ("process_id", "num_processes", "host"))
    # By its very type: True is an int too. Process 0 does not call itself.
    if type(number) is not int or type(count) is not int or not isinstance(host, str):
        raise ValueError("not a process")
    if not 0 < number < count:
        raise ValueError("not a process's number")
    return number, count, host


def _listening(place: Place) -> socket.socket:
    port = place.address[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise RunFailed(
            f"coordinator={place.coordinator!r}: port {port} must be free on {platform.node()}, "
            f"where process 0 runs: {os.strerror(error.errno or 0)}; does another run, or another "
            "process 0, use it?"
        ) from error


def _missing(place: Place, here: set[int], seconds: float) -> str:
    absent = [str(number) for number in range(1, place.num_processes) if number not in here]
    which = f"process {absent[0]}" if len(absent) == 1 else f"processes {', '.join(absent)}"
    return (
        f"num_processes={place.num_processes}: {which} did not join {place.coordinator} within "
        f"{seconds:g} s (initialization_seconds); not started, or cannot reach it?"
    )


def _objection(
    place: Place,
    here: dict[int, tuple[str, socket.socket]],
    number: int,
    count: int,
    host: str,
) -> str | None:
    """Return what is wrong with a process that has come, if anything."""
    if count != place.num_processes:
        return (
            f"num_processes={count} in process {number} on {host}: must be {place.num_processes}, "
            f"as in process 0 on {platform.node()}"
        )
    if number in here:
        return (
            f"process_id={number}: must be of one process, not of two, on {here[number][0]} and on "
            f"{host}"
        )
    return None


def _answer(place: Place, deadline: float, seconds: float) -> Peers:
    """Join process 0."""
    host, port = place.address
    hello = {
        "process_id": place.process_id,
        "num_processes": place.num_processes,
        "host": platform.node(),
    }
    why = "nothing answered"
    while time.monotonic() < deadline:
        try:
            link = socket.create_connection((host, port), timeout=deadline - time.monotonic())
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(0.2)
            continue
        try:
            _say(link, hello)
            said = _hear(link, deadline - time.monotonic() + _LATER)
        except (OSError, ValueError):
            said = {}
        if "met" in said:
            return Peers(place, {0: (said["met"], link)})
        link.close()
        if "refused" in said:
            raise RunFailed(said["refused"])
        why = "what answers there does not wait for this process; a run that has begun?"
        time.sleep(1.0)
    raise RunFailed(
        f"coordinator={place.coordinator!r}: must be where process 0 waits; process "
        f"{place.process_id} on {platform.node()} could not join it within {seconds:g} s "
        f"(initialization_seconds): {why}"
    )


def _say(link: socket.socket, said: dict[str, Any]) -> None:
    link.sendall(json.dumps(said).encode() + b"\n")


def _hear(link: socket.socket, seconds: float) -> dict[str, Any]:
    """Return the next line.

    Raises:
        OSError, ValueError: if none comes in time, or it is not one of ours.
    """
    deadline, data = time.monotonic() + seconds, b""
    while not data.endswith(b"\n"):
        link.settimeout(max(0.01, deadline - time.monotonic()))
        # A byte at a time, so that what follows the line is left for who reads on.
        byte = link.recv(1)
        if not byte or len(data) > _LONGEST:
            raise ValueError("cut short")
        data += byte
    said = json.loads(data)
    if not isinstance(said, dict):
        raise ValueError("not an object")
    return said
