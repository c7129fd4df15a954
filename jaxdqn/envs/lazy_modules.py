"""Placeholders for modules that another package imports but rarely uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """A module that is imported at its first use."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            # The import system probes such attributes of every module.
            raise AttributeError(attribute)
        return getattr(import_module(self.__name__), attribute)


@contextmanager
def imported_lazily(*names: str) -> Iterator[None]:
    """Replace modules by ``LazyModule`` for the imports of the block.

    Modules that the block imports keep the placeholders, which forward every use to the real
    modules. Modules already imported stay, and after the block ``sys.modules`` holds no
    placeholder: later imports of these names load the real modules.

    Args:
        names: full names of modules.
    """
    placeholders = {name: LazyModule(name) for name in names if name not in sys.modules}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name, placeholder in placeholders.items():
            if sys.modules.get(name) is placeholder:
                del sys.modules[name]
