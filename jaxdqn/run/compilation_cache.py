"""Persistent compilation cache of JAX, which stores compiled programs on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

_ENABLED = "jax_enable_compilation_cache"
_DIR = "jax_compilation_cache_dir"
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"

_lock = threading.Lock()
_inside = 0
"""Number of open ``programs_kept`` blocks over all threads."""
_seconds_before = 0.0
"""Original setting, restored at the end of the last block."""


def default_directory() -> Path | None:
    """Return the user's cache directory for this library; None if it cannot be created."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(caches) / "jaxdqn" / "xla"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError without a home
        return None
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


def use_persistent_cache() -> bool:
    """Enable the cache in ``default_directory()``; return True if it is enabled there.

    No setting is changed in three cases: the user chose another directory
    (``JAX_COMPILATION_CACHE_DIR`` or ``jax_compilation_cache_dir``), the user disabled the cache
    (``jax_enable_compilation_cache=False``), or the default directory is not writable.
    """
    chosen = getattr(jax.config, _DIR)
    if not getattr(jax.config, _ENABLED):
        return False
    directory = default_directory()
    if directory is None or chosen not in (None, str(directory)):
        return False
    if chosen is None:
        jax.config.update(_DIR, str(directory))
    return True


def lacks_directory() -> bool:
    """Return True if the cache is missing only because no directory is writable."""
    wanted = getattr(jax.config, _ENABLED) and getattr(jax.config, _DIR) is None
    return wanted and default_directory() is None


@contextmanager
def programs_kept() -> Iterator[None]:
    """Cache every program that is compiled inside the ``with`` block.

    By default JAX caches only programs that take more than a second to compile. Settings of the
    user take precedence, as in ``use_persistent_cache``. The setting is global to the process: with
    several threads, the first one changes it and the last one restores it.
    """
    global _inside, _seconds_before
    if not use_persistent_cache():
        yield
        return
    with _lock:
        if _inside == 0:
            _seconds_before = getattr(jax.config, _MIN_SECONDS)
            jax.config.update(_MIN_SECONDS, 0.0)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                jax.config.update(_MIN_SECONDS, _seconds_before)
