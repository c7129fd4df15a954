"""Placeholders for modules that another package imports but rarely uses."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LOCK = threading.RLock()
"""Lock for changes of ``sys.modules`` and environment variables, which threads share."""


class LazyModule(ModuleType):
    """Module that is imported at its first use."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            # The import system probes such attributes of every module.
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            # ``from package import module`` while the package is replaced.
            return LazyModule(f"{self.__name__}.{attribute}")
        return getattr(import_module(self.__name__), attribute)


@contextmanager
def imported_lazily(*names: str) -> Iterator[None]:
    """Replace modules by ``LazyModule`` for the imports in the block.

    Modules that the block imports keep the placeholders, which forward every use to the real
    modules. Modules that were already imported are not replaced. After the block ``sys.modules``
    has no placeholders, so later imports of these names load the real modules. The modules need not
    be installed; a missing module raises ``ModuleNotFoundError`` at its first use.

    Args:
        names: full names of modules.
    """
    with _LOCK:
        wanted = [*filter(None, map(_missing_package, names)), *names]
        placeholders = {name: LazyModule(name) for name in wanted if name not in sys.modules}
        sys.modules.update(placeholders)
        try:
            yield
        finally:
            for name, placeholder in placeholders.items():
                if sys.modules.get(name) is placeholder:
                    del sys.modules[name]


def _missing_package(name: str) -> str:
    """Return a module's package if that package is not installed, else an empty string."""
    package = name.rpartition(".")[0]
    if not package or package in sys.modules:
        return ""
    try:
        return package if find_spec(package) is None else ""
    except ModuleNotFoundError:
        return package


def import_matplotlib() -> None:
    """Import matplotlib if it is installed; call before any import of its modules.

    Notebooks set ``MPLBACKEND``, which the processes that they start inherit. If the backend is not
    installed for such a process, matplotlib cannot be imported with the variable. It is therefore
    imported without the variable, and the backend is selected afterwards if possible. The library
    creates its canvases itself, so it does not depend on the backend.
    """
    if "matplotlib" in sys.modules:
        return
    with _LOCK, suppress(ImportError), _without_log_of_home():
        backend = os.environ.pop("MPLBACKEND", None)
        try:
            matplotlib = import_module("matplotlib")
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
        if backend:
            with suppress(ValueError):
                matplotlib.rcParams["backend"] = backend


@contextmanager
def _without_log_of_home() -> Iterator[None]:
    """Suppress matplotlib's warnings, such as that about a missing cache directory."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
