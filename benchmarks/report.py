"""Tables, files and stamps of benchmark results."""

from __future__ import annotations

import datetime
import importlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


def stamp() -> dict[str, Any]:
    """Return the machine, the versions and the time of a measurement."""
    import jax

    import jaxdqn
    from jaxdqn.envs.vector.base import cpus
    from jaxdqn.run.machine import cpu_model

    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device_kind": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "processor": cpu_model(),
        "cores": cpus(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "jaxdqn": jaxdqn.__version__,
        "commit": commit_of(Path(__file__).resolve().parent.parent),
    }


def describe(stamped: Mapping[str, Any]) -> str:
    """Format a stamp in one line."""
    return (
        f"{stamped['device_kind']} ({stamped['processor']}, {stamped['cores']} cores, load "
        f"{stamped['load_average']}), jax {stamped['versions']['jax']}, "
        f"Python {stamped['python']}, commit {stamped['commit']}, {stamped['time']}"
    )


def check_writable(path: str | None) -> None:
    """Check before measuring that a file can be written.

    Raises:
        ValueError: if it cannot; the message gives the reason.
    """
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{path}: must be a file, not a directory")
    nearest = target.parent
    while not nearest.exists():
        nearest = nearest.parent
    try:
        tempfile.TemporaryFile(dir=nearest).close()
        if target.exists():
            target.open("a").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON; create the directory and replace an existing file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table with the first column aligned left and the others aligned right."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])

    return "\n".join(line(row).rstrip() for row in cells)


def format_markdown(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table in Markdown."""
    lines = [list(headers), ["---"] * len(headers), *([_cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(value: float) -> str:
    """Format with three significant digits, or all digits of the integer part; no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def _cell(value: Any) -> str:
    return short(value) if isinstance(value, float) else str(value)


def _plain(content: Any) -> Any:
    """Convert named tuples to dictionaries, so that JSON keeps their field names."""
    if hasattr(content, "_asdict"):
        return {name: _plain(value) for name, value in content._asdict().items()}
    if isinstance(content, Mapping):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content


def around_marks(page: Path, start: str, end: str) -> tuple[str, str]:
    """Return the text of a page before its mark ``start`` and after its mark ``end``.

    Raises:
        ValueError: if the page lacks one of the marks.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not 0 <= text.find(start) < text.find(end):
        raise ValueError(f"page='{page}': must have the lines '{start}' and '{end}'")
    return text.partition(start)[0], text.partition(end)[2]


def commit_of(root: Path) -> str:
    """Return the commit of a checkout, with a mark if it has changes; ``unknown`` otherwise."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
