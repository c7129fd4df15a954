"""JAX's persistent compilation cache: compiled programs kept on disk for later processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

_ENABLED = "jax_enable_compilation_cache"
_DIR = "jax_compilation_cache_dir"
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def default_directory() -> Path | None:
    """Return the cache directory of the user for this library; None if it cannot be made."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(caches) / "jaxdqn" / "xla"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError without a home
        return None
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


def use_persistent_cache() -> bool:
    """Enable the cache in ``default_directory()``; return whether it is enabled there.

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


@contextmanager
def programs_kept() -> Iterator[None]:
    """Cache every program that is compiled inside the ``with`` block.

    By default JAX caches only programs that take more than a second to compile. Settings of the
    user take precedence, as in ``use_persistent_cache``.
    """
    if not use_persistent_cache():
        yield
        return
    before = getattr(jax.config, _MIN_SECONDS)
    jax.config.update(_MIN_SECONDS, 0.0)
    try:
        yield
    finally:
        jax.config.update(_MIN_SECONDS, before)
