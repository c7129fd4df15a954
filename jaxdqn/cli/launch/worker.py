"""Worker process of a multi-process run, a child of ``jaxdqn.cli.launch.supervisor``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from jaxdqn.cli.flags import FAILED, USAGE_ERROR, run_command
from jaxdqn.cli.launch.rendezvous import ProcessSpec
from jaxdqn.cli.launch.runtime_errors import Timeouts
from jaxdqn.cli.launch.supervisor import HOSTS_PREFIX, LIFELINE, LOST_CONTACT
from jaxdqn.monitoring.output import say

_ABORT_SECONDS = 60.0
"""Time after lost contact within which the runtime names the failed process and aborts."""

_REJECTION_SECONDS = 1.0
"""Time for the other processes to reject the same configuration, before this process exits."""

_CONTACT = re.compile(r"gloo|nccl|connection|unavailable|heartbeat|coordination|aborted", re.I)


def work(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None) -> int:
    """Run the command and return 0; after a failure, exit with a non-zero code instead.

    The process exits by ``os._exit``. A normal exit would deadlock: JAX would wait for the other
    processes, which wait for this one.
    """
    _end_with_parent()
    try:
        code = run_command(command, argv)
    except BaseException as error:
        if _lost_contact(error):
            time.sleep(_ABORT_SECONDS)
            code = LOST_CONTACT
        else:
            traceback.print_exc()
            # The supervisor sends the last line to the other processes.
            message = " ".join(traceback.format_exception_only(error)[-1].split())
            print(f"error: {message}", file=sys.stderr)
            code = FAILED
    if code:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        if code == USAGE_ERROR:
            # When this process exits, the others are stopped. Let them report the error first.
            time.sleep(_REJECTION_SECONDS)
        os._exit(code)
    return 0


def join(spec: ProcessSpec | None, timeouts: Timeouts) -> bool:
    """Join the other processes and return whether this one is the coordinator.

    Each worker reports the hosts of all processes to its parent; the coordinator prints them.
    """
    from jaxdqn.parallel import multihost

    multihost.join(
        *(spec or ()),
        heartbeat_seconds=timeouts.heartbeat,
        initialization_seconds=timeouts.initialization,
    )
    import jax

    hosts = multihost.host_names()
    message = {"index": jax.process_index(), "hosts": hosts}
    print(HOSTS_PREFIX + json.dumps(message), file=sys.stderr)
    if multihost.is_coordinator():
        each = ", ".join(f"{index} on {host}" for index, host in enumerate(hosts))
        devices = f"{jax.device_count()} {jax.devices()[0].platform} devices"
        say(f"{len(hosts)} processes with {devices}: {each}")
    return multihost.is_coordinator()


def _end_with_parent() -> None:
    """Exit when the parent process exits, for whatever reason."""
    lifeline = int(os.environ[LIFELINE])

    def watch() -> None:
        # Nothing is ever written: read returns when the parent's end of the pipe closes.
        os.read(lifeline, 1)
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


def _lost_contact(error: BaseException) -> bool:
    from jax.errors import JaxRuntimeError

    return isinstance(error, JaxRuntimeError) and _CONTACT.search(str(error)) is not None
