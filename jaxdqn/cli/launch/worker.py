"""One process among several: the run itself, the child of ``jaxdqn.cli.launch``."""

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

from jaxdqn.cli.flags import FAILED, run_command
from jaxdqn.cli.launch.rendezvous import Place
from jaxdqn.cli.launch.supervisor import HOSTS, LIFELINE, LOST, Timeouts

_LINGER = 60.0
"""Seconds to wait, contact lost, for the runtime to say which process failed and abort."""

_CONTACT = re.compile(r"gloo|nccl|connection|unavailable|heartbeat|coordination|aborted", re.I)


def work(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None) -> int:
    """Run the command and return its exit code, or end the process with it if it is not 0.

    JAX would wait, at the interpreter's end, for the other processes, which wait for this one.
    """
    _end_with_parent()
    try:
        code = run_command(command, argv)
    except BaseException as error:
        if _lost_contact(error):
            time.sleep(_LINGER)
            code = LOST
        else:
            traceback.print_exc()
            # The last line is what the other processes are told.
            what = " ".join(traceback.format_exception_only(error)[-1].split())
            print(f"error: {what}", file=sys.stderr)
            code = FAILED
    if code:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return 0


def join(place: Place | None, timeouts: Timeouts) -> bool:
    """Join the other processes, say who is where, and return whether this one leads."""
    from jaxdqn.parallel import multihost

    multihost.join(
        *(place or ()),
        heartbeat_seconds=timeouts.heartbeat,
        initialization_seconds=timeouts.initialization,
    )
    import jax

    names = multihost.host_names()
    print(HOSTS + json.dumps({"index": jax.process_index(), "names": names}), file=sys.stderr)
    if multihost.is_coordinator():
        each = ", ".join(f"{index} on {name}" for index, name in enumerate(names))
        devices = f"{jax.device_count()} {jax.devices()[0].platform} devices"
        print(f"{len(names)} processes with {devices}: {each}", flush=True)
    return multihost.is_coordinator()


def _end_with_parent() -> None:
    """End this process when its parent has ended, however that was."""
    lifeline = int(os.environ[LIFELINE])

    def watch() -> None:
        os.read(lifeline, 1)  # nothing is ever written
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


def _lost_contact(error: BaseException) -> bool:
    from jax.errors import JaxRuntimeError

    return isinstance(error, JaxRuntimeError) and _CONTACT.search(str(error)) is not None
