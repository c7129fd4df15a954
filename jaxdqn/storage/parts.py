"""Custom parts of a run, such as its environment and network, and their record.

``parts.json`` names each custom part by its reference, or as null if a Python program passed an
object, which cannot be stored. It also contains the properties of the environment
(``environment_spec``) and the head of a registered loss (``loss_record``).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.suite_envs import is_suite_env
from jaxdqn.storage.directory import PARTS, read_config
from jaxdqn.storage.environment_spec import SPEC
from jaxdqn.storage.jsonl import Record, write_json
from jaxdqn.storage.loss_record import LOSS, is_loss_record

NAMES = (
    "environment", "network", "optimizer", "replay", "explore", "loss", "learning", "agent",
)  # fmt: skip
ACTING = ("environment", "network", "agent")
"""Parts that a greedy policy needs."""
_FUNCTIONS = {"replay": 1, "explore": 3, "loss": 5, "learning": 3, "agent": 3}
"""Number of positional arguments of the parts that are functions; a reference may name such a part
directly."""
EXPECTED = {
    "environment": "a jaxdqn Environment, as make_environment builds it, or a gymnax environment",
    "network": "a flax module or a jaxdqn Network",
    "optimizer": "an optimizer, a function hyper -> optax.GradientTransformation",
    "replay": "a replay, a function config -> Replay",
    "explore": "an exploration, a function (key, q, exploration) -> (actions, behaviour_prob)",
    "loss": "a loss, a function (params, target_params, key, batch, hyper) -> (losses, info)",
    "learning": "a learning, a function (config, agent, collectives) -> Learning",
    "agent": "an Agent, or a function (config, spec, collectives) -> Agent",
}
"""Required return value of the function that a reference names, by part."""


class OwnParts(NamedTuple):
    """Custom parts of a run."""

    objects: dict[str, Any]
    """Keyword arguments of ``make_trainer``: each part, or None to use the configured one."""
    record: Record
    """Content of ``parts.json``: only the custom parts."""


def resolve_parts(
    given: Mapping[str, Any],
    remembered: Mapping[str, Any] | None = None,
    *,
    run: str | os.PathLike[str] = "",
) -> OwnParts:
    """Resolve references, and take missing parts from the record of a run.

    Args:
        given: custom parts by name (``NAMES``): an object, a reference ``MODULE:FUNCTION`` or
            ``FILE.py:FUNCTION``, or None.
        remembered: content of the run's ``parts.json``, used for each part given as None.
        run: run directory, for error messages.

    Raises:
        ValueError: if a reference cannot be resolved, a recorded part was an object, or a part is
            given for a run that was started without a custom part of this name.
    """
    objects: dict[str, Any] = dict(given)
    record = dict(remembered or {})
    _check_were_own(given, record, run)
    for name, part in given.items():
        if isinstance(part, str):
            record[name] = {"reference": part, "directory": os.getcwd()}
        elif part is not None:
            record[name] = None
            if name == "environment":
                objects[name] = _environment(part)
            continue
        if name not in record:
            continue
        if record[name] is None:
            raise ValueError(_missing(name, run))
        objects[name] = resolve(name, record[name]["reference"], record[name]["directory"])
    return OwnParts(objects, record)


def resolve(name: str, reference: str, directory: str | os.PathLike[str] = ".") -> Any:
    """Import the function that a reference names, call it, and return the part.

    The reference of a replay, exploration, loss, learning or agent may also name the part itself.

    The directory is added to the import path, as ``python -m`` does with the current directory.

    Args:
        name: one of ``NAMES``.
        reference: ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.
        directory: directory searched first for the module or the file. If it no longer exists, the
            current directory is used.

    Raises:
        ValueError: if the reference is malformed, the module, file or function does not exist,
            or the function needs arguments or does not return what ``EXPECTED`` describes.
    """
    check_reference(name, reference)
    target, _, attribute = reference.rpartition(":")
    directory = Path(directory if Path(directory).is_dir() else ".").resolve()
    if target.endswith(".py"):
        module = _import_file(name, reference, directory / target)
    else:
        module = _import_module(name, reference, target, directory)
    function: Any = module
    for step in attribute.split("."):
        if not hasattr(function, step):
            raise _invalid(name, reference, f"name a function of {target}; it has no {attribute}")
        function = getattr(function, step)
    if _takes(function, _FUNCTIONS.get(name)):
        return function
    _check_function(name, reference, function)
    part = function()
    if not _is_part(name, part):
        raise _invalid(name, reference, f"return {EXPECTED[name]}, not {type(part).__name__}")
    return _environment(part) if name == "environment" else part


def check_reference(name: str, reference: str) -> None:
    """Check the form of a reference without importing anything.

    Raises:
        ValueError: if it is not ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.
    """
    target, _, attribute = reference.rpartition(":")
    dotted = target if not target.endswith(".py") else "file"
    if not all(step.isidentifier() for step in (*dotted.split("."), *attribute.split("."))):
        known = "; --env, or --envs of a study, names a known one" if name == "environment" else ""
        raise _invalid(name, reference, f"be MODULE:FUNCTION or FILE.py:FUNCTION{known}")


def write_parts(run: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write the record of a run's custom parts; write nothing if there are none."""
    if record:
        write_json(Path(run) / PARTS, dict(record))


def read_parts(run: str | os.PathLike[str]) -> Record:
    """Read the record of a run's custom parts; the record is empty if there are none.

    Raises:
        ValueError: if there is no run directory, or a file in it is damaged.
    """
    config, record = read_config(run), recorded_parts(run)
    from jaxdqn import envs  # imports JAX

    registered = is_host_env(config.env) or is_suite_env(config.env) or config.env in envs.names()
    if "environment" not in record and not registered:
        # The run is from an older version, or the program registered the environment with gymnax.
        record["environment"] = None
    return record


def recorded_parts(run: str | os.PathLike[str]) -> Record:
    """Read ``parts.json`` without importing anything; it is empty if there is no such file.

    Raises:
        ValueError: if the file is damaged.
    """
    file = Path(run) / PARTS
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: must be a readable record of custom parts: {error}") from error
    if not isinstance(record, dict) or not all(map(_is_entry, record.items())):
        raise ValueError(f"{file}: must be a record of custom parts: {', '.join(NAMES)}")
    return record


def references_of(record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return (reference, directory) of each part that a record names by a reference."""
    return {
        name: (part["reference"], part["directory"])
        for name, part in record.items()
        if name in NAMES and part is not None
    }


def _check_were_own(given: Mapping[str, Any], record: Record, run: str | os.PathLike[str]) -> None:
    """Check that the run had a custom part of each given name; older records are not checked."""
    for name, part in given.items():
        if part is not None and SPEC in record and name not in record:
            raise ValueError(
                f"{name}: must be left out: the run in {os.fspath(run)} did not have its own {name}"
            )


def _environment(part: Any) -> Any:
    from jaxdqn.envs.gymnax import as_environment
    from jaxdqn.envs.vector import HostEnvironment

    return part if isinstance(part, HostEnvironment) else as_environment(part)


def _is_entry(entry: tuple[str, Any]) -> bool:
    name, value = entry
    texts = ("reference", "directory")
    if name == SPEC:
        return isinstance(value, dict)
    if name == LOSS:
        return is_loss_record(value)
    return name in NAMES and (
        value is None
        or (isinstance(value, dict) and all(isinstance(value.get(text), str) for text in texts))
    )


def _import_module(name: str, reference: str, target: str, directory: Path) -> ModuleType:
    _make_importable(directory)
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{target}.".startswith(f"{error.name}."):
            where = f"neither in {directory} nor installed"
            raise _invalid(name, reference, f"name a module; {error.name} is {where}") from error
        raise _cannot_import(name, reference, target, error) from error
    except ImportError as error:
        raise _cannot_import(name, reference, target, error) from error


def _import_file(name: str, reference: str, file: Path) -> ModuleType:
    """Import a file under a module name derived from its path, so that no module is replaced."""
    if not file.is_file():
        raise _invalid(name, reference, f"name a file; there is no {file}")
    unique = f"{file.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    _make_importable(file.parent)
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look up their module while it executes
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[unique]
        if isinstance(error, ImportError):
            raise _cannot_import(name, reference, file.name, error) from error
        raise
    return module


def _make_importable(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    importlib.invalidate_caches()


def _check_function(name: str, reference: str, function: Any) -> None:
    if not callable(function) or _is_part_object(name, function):
        raise _invalid(
            name, reference, f"name a function that returns {EXPECTED[name]}, not "
            f"{type(function).__name__}"
        )  # fmt: skip
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise _invalid(
            name, reference, f"name a function without arguments that returns {EXPECTED[name]}"
        ) from error
    except ValueError:
        pass  # a function without a signature, implemented in C


def _is_part_object(name: str, value: Any) -> bool:
    """Return True if a callable is a part rather than a factory; False for optimisers."""
    return name in ("environment", "network") and _is_part(name, value)


def _takes(value: Any, count: int | None) -> bool:
    """Return True if a value can be called with ``count`` positional arguments."""
    if count is None or not callable(value):
        return False
    try:
        inspect.signature(value).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _is_part(name: str, part: Any) -> bool:
    from flax import linen

    from jaxdqn.envs.gymnax import is_gymnax
    from jaxdqn.types import Agent, Environment, Network

    if name == "environment":
        return isinstance(part, Environment) or is_gymnax(part)
    if name == "network":
        return isinstance(part, linen.Module | Network)
    if name in _FUNCTIONS:
        return _takes(part, _FUNCTIONS[name]) or (name == "agent" and isinstance(part, Agent))
    return not isinstance(part, linen.Module) and _is_optimizer(part)


def _is_optimizer(part: Any) -> bool:
    import optax

    from jaxdqn.config.config import Config
    from jaxdqn.training.hyper import hyper_from

    if not callable(part):
        return False
    try:
        inspect.signature(part).bind(None)
    except TypeError:
        return False
    return isinstance(part(hyper_from(Config())), optax.GradientTransformation)


def _invalid(name: str, reference: str, constraint: str) -> ValueError:
    return ValueError(f"{name}={reference!r}: must {constraint}")


def _cannot_import(name: str, reference: str, target: str, error: ImportError) -> ValueError:
    return _invalid(name, reference, f"be importable; importing {target} failed: {error}")


def _missing(name: str, run: str | os.PathLike[str]) -> str:
    return (
        f"{name}=None: must be given: the run in {os.fspath(run)} has its own {name}, which a "
        f"Python program passed as an object; pass {name}=... again, or on the command line "
        f"--{name} MODULE:FUNCTION"
    )
