"""Explain the messages with which JAX's distributed runtime aborts a process. Imports no JAX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxdqn.cli.launch.rendezvous import ProcessSpec


class Timeouts(NamedTuple):
    """Time-outs in seconds."""

    heartbeat: int
    initialization: int


def is_abort_message(line: str) -> bool:
    """Return whether a line of standard error starts the message that precedes an abort."""
    return _FATAL.match(line) is not None


_FATAL = re.compile(r"[EF]\d{4} \d\d:\d\d:\d\d.*(coordination_service|client\.h)")


def explain_abort(
    text: str, hosts: Sequence[str], spec: ProcessSpec | None, timeouts: Timeouts
) -> str | None:
    """Return a plain explanation of the runtime's abort message; None for an unknown message.

    Args:
        text: the lines of the message.
        hosts: host of each process; empty before the worker has reported them.
        spec: this process; None in a cluster that JAX detects.
        timeouts: the time-outs of the run.
    """

    def describe(index: int) -> str:
        return f"process {index}" + (f" on {hosts[index]}" if index < len(hosts) else "")

    coordinator = "the coordinator" if spec is None else spec.coordinator
    silent = re.search(r"[Tt]ask:? ?(\d+) heartbeat timeout", text) or re.search(
        r"stopped sending heartbeats\):\s+(?:\S*task:)?(\d+)", text
    )
    if silent:
        return (
            f"{describe(int(silent[1]))} has not answered for {timeouts.heartbeat} s "
            "(heartbeat_seconds): it was killed, or its host or network failed"
        )
    duplicate = re.search(r"(\d+) unexpectedly tried to connect", text)
    if duplicate:
        return (
            f"process_id={duplicate[1]}: must be unique, but two processes have it, or one was "
            "restarted during the run"
        )
    if "RegisterTask" in text and "DEADLINE_EXCEEDED" in text:
        return (
            f"not all processes joined {coordinator} within {timeouts.initialization} s "
            "(initialization_seconds): one was not started, or cannot reach it"
        )
    if "Failed to send RPC to coordination service" in text or "PollForError" in text:
        return (
            f"{describe(0)}, the coordinator, disconnected: it was killed, or its host or "
            "network failed"
        )
    return None
