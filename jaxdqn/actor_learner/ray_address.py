"""Check of the address of a Ray cluster."""

from __future__ import annotations

import socket
import subprocess
import sys

from jaxdqn.errors import reject

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15


def check_address(address: str | None) -> None:
    """Check that a Ray cluster answers at an address.

    ``ray.init`` waits for minutes if a server accepts connections but does not answer.

    Raises:
        ValueError: if nothing accepts a connection within five seconds, if no Ray cluster answers
            within fifteen, or if the address is malformed.
    """
    if address in (None, "auto"):
        return
    assert address is not None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        reject("ray_address", address, "'auto' or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        reject("ray_address", address, f"the address of a Ray cluster that answers: {error}")
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(
            status, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        reject("ray_address", address, "the address of a Ray cluster: something accepts "
               f"connections there, and does not answer within {_ANSWER_SECONDS} s")  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = " ".join(lines[-4:]) or f"exit code {done.returncode}"
        reject("ray_address", address, f"the address of a Ray cluster: {reason[:400]}")
