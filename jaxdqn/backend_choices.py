"""Choices that depend on the backend a program is traced for, all in one place."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ASSUMED: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)


def backend() -> str:
    """Return the backend that programs are traced for: ``cpu``, ``gpu`` or ``tpu``."""
    return _ASSUMED.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Trace programs for another backend than JAX's default, in order to compile them for it.

    Build the trainer within the context too: some choices are made when it is built.
    """
    token = _ASSUMED.set(name)
    try:
        yield
    finally:
        _ASSUMED.reset(token)
