"""In-process cache of compiled programs, keyed by all their static inputs."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax

from jaxdqn.config.config import Config, replace
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import RunKeys
from jaxdqn.run.chunk_parts import first_part
from jaxdqn.run.compilation_cache import programs_kept
from jaxdqn.run.compile import Programs, compile_programs
from jaxdqn.run.compile_vector import VectorCompiled, compile_vector, vector_programs
from jaxdqn.training.vector_trainer import AnyTrainer, VectorTrainer
from jaxdqn.types import TrainState

MAX_ENTRIES = 8
"""Maximum number of cached configurations; the least recently used one is dropped."""

HOST_FIELDS = (
    "seed",
    "eval_every",
    "solve_return",
    "stop_when",
    "max_seconds",
    "checkpoint_every",
    "checkpoint_signals",
    "keep",
    "rollback_factor",
    "rollback_limit",
    "replay_from",
    "init_from",
)
"""Fields on which the programs do not depend: they are read by the host only, or they determine
arguments of the programs (keys, rows)."""

_CHECK_SECONDS = 0.1

_CACHE_SETTINGS = ("jax_compilation_cache_", "jax_persistent_cache_")


@dataclasses.dataclass
class StaticRun:
    """Part of a run that is independent of its seed, scalars and directory."""

    trainer: AnyTrainer
    """Pass ``hyper`` explicitly: the defaults of ``init`` are the hyper-parameters of the first
    run."""
    state_shape: TrainState
    programs: Programs | None = None
    compiled: VectorCompiled | None = None
    """Used instead of ``programs`` with environments on the host, which runs cannot share."""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    """Held during compilation, so that runs in other threads wait for the programs."""


_entries: OrderedDict[Hashable, StaticRun] = OrderedDict()
_lock = threading.Lock()


def static_run(config: Config, keys: RunKeys, parts: dict[str, Any]) -> StaticRun:
    """Return the trainer and the shapes of the state, reusing an earlier run with the same key.

    Args:
        config: configuration of the run.
        keys: random keys of the run.
        parts: custom parts by name; None for the configured ones.

    Raises:
        ValueError: if ``make_mapped_trainer`` raises it.
    """
    key = static_key(config, parts)
    with _lock:
        if key in _entries:
            _entries.move_to_end(key)
            return _entries[key]
    trainer = make_mapped_trainer(config, **parts)
    made = StaticRun(trainer, jax.eval_shape(trainer.init, keys.train))
    # A run with reset='auto' shares its programs with a run that configures the chosen resets.
    resolved = static_key(replace(config, reset=trainer.reset), parts)
    with _lock:
        made = _entries.setdefault(resolved, made)  # another thread may have added it meanwhile
        _entries[key] = made
        while len({id(entry) for entry in _entries.values()}) > MAX_ENTRIES:
            _entries.popitem(last=False)
    return made


def compiled_programs(
    static: StaticRun, config: Config, keys: RunKeys, check: Callable[[], None] = lambda: None
) -> Programs:
    """Return the programs of a run; compile them unless an earlier run compiled them.

    Args:
        static: trainer and shapes of the run.
        config: configuration of the run.
        keys: random keys of the run.
        check: called repeatedly during compilation; an exception that it raises ends the wait.
    """
    while not static.lock.acquire(timeout=_CHECK_SECONDS):
        check()  # another thread compiles them
    try:
        if isinstance(static.trainer, VectorTrainer):
            if static.compiled is None:
                with programs_kept():
                    static.compiled = compile_vector(
                        config, static.trainer, static.state_shape, check
                    )
            return vector_programs(config, static.trainer, static.compiled)
        if static.programs is None:
            with programs_kept():
                static.programs = compile_programs(
                    config, static.trainer, keys, static.state_shape, check
                )
        if (part := first_part(config)) is not None:
            # Compiled in another thread, during the warm-up.
            static.programs.part_of_chunk(part)
        return static.programs
    finally:
        static.lock.release()


def clear() -> None:
    """Drop all programs, for example after changing a variable that a traced function reads."""
    with _lock:
        _entries.clear()


def static_key(config: Config, parts: dict[str, Any]) -> Hashable:
    """Return the cache key; runs with equal keys can share compiled programs.

    The key contains:

    - every field of the configuration except ``HOST_FIELDS``. The scalars in ``Hyper`` are
      arguments of the programs, so the key contains only whether each is None;
    - the custom parts and the loss function. As in ``jax.jit``, hashable objects are compared by
      equality; others are compared by identity;
    - the devices, and all settings of JAX except those of the compilation cache.
    """
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in HOST_FIELDS
    }
    for name in SWEEPABLE:
        fields[name] = fields[name] is None
    fields["extra_hyper"] = tuple(config.extra_scalars)
    fields["sweep"] = len(config.sweep_points)
    loss = LOSSES[config.loss]
    settings = tuple(
        (name, repr(getattr(jax.config, name, None)))
        for name in sorted(jax.config.values)
        if not name.startswith(_CACHE_SETTINGS)
    )
    return (
        tuple((name, type(value), value) for name, value in fields.items()),
        tuple((name, _static(part)) for name, part in sorted(parts.items())),
        (_static(loss.load()), loss.head),
        (jax.default_backend(), tuple(jax.devices()), jax.process_count()),
        jax.sharding.get_abstract_mesh(),
        settings,
    )


def _static(part: Any) -> Hashable:
    try:
        hash(part)
    except TypeError:
        return _Identity(part)
    return type(part), part


class _Identity:
    """Wrapper that compares an object by identity and keeps it alive."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._value is other._value
