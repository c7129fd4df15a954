"""Definition of a study as a TOML file, for ``jaxdqn study --definition FILE``.

The file gives values of the command's flags; ``settings`` is a table of configuration fields::

    presets = ["dqn", "c51"]
    envs = ["Breakout-MinAtar", "Asterix-MinAtar"]
    seeds = 5
    total_rows = 1_000_000

    [settings]
    eval_every = 100_000

Imports no JAX.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from jaxdqn.cli.study.settings import as_text
from jaxdqn.errors import suggest

_FIELDS: dict[str, tuple[Any, str]] = {
    "presets": (list, "a list of names"),
    "envs": (list, "a list of names"),
    "environment": (str, "a reference MODULE:FUNCTION"),
    "network": (str, "a reference MODULE:FUNCTION"),
    "optimizer": (str, "a reference MODULE:FUNCTION"),
    "seeds": (int, "a whole number"),
    "first_seed": (int, "a whole number"),
    "total_rows": (int, "a whole number"),
    "seeds_at_once": (int, "a whole number"),
    "settings": (dict, "a table of configuration fields"),
}
"""Keys of a definition, with the type of each value and its name in error messages."""


def read_definition(path: str) -> dict[str, Any]:
    """Return the flags in a definition; its settings become texts NAME=VALUE in ``set``.

    Raises:
        ValueError: if the file cannot be read, is not TOML, or has an unknown key or a value of
            the wrong type.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"definition={path!r}: must be readable: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"definition={path!r}: must be a TOML file: {error}") from error
    for name, value in content.items():
        if name not in _FIELDS:
            nearest = suggest(name, list(_FIELDS))
            raise ValueError(f"definition={path!r}: {name} must be one of {nearest}")
        kind, constraint = _FIELDS[name]
        valid = isinstance(value, kind) and not isinstance(value, bool)
        if kind is list:
            valid = valid and all(isinstance(item, str) for item in value)
        if not valid:
            raise ValueError(f"definition={path!r}: {name}={value!r} must be {constraint}")
    settings = content.pop("settings", {})
    flags = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    return {**flags, "set": tuple(f"{name}={as_text(value)}" for name, value in settings.items())}
