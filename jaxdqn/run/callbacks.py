"""Callbacks: objects that a run calls between chunks and that may end the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.errors import EndRun, known_name
from jaxdqn.monitoring.output import warn
from jaxdqn.parallel import multihost
from jaxdqn.storage.jsonl import Record
from jaxdqn.types import Hyper, Params, TrainState

METHODS = ("on_chunk", "on_evaluation", "on_checkpoint", "on_end")
"""Methods that a run calls; a callback defines at least one of them."""

_MAY_SET = ("on_chunk", "on_evaluation")


class CallbackContext:
    """Argument of every callback method; valid only until the method returns.

    Args:
        method: name of the method that receives the context.
        config: configuration of the run.
        record: see ``record``.
        params: function that returns the online parameters without copying them.
        hyper: function that returns the traced hyper-parameters.
        directory: run directory.
    """

    def __init__(
        self,
        method: str,
        config: Config,
        record: Record,
        params: Callable[[], Params],
        hyper: Callable[[], Hyper],
        directory: Path | None,
    ) -> None:
        self.config = config
        """Configuration of the run."""
        self.directory = directory
        """Run directory; None if the run writes nothing."""
        self.record = record
        """Metrics of the chunk, evaluation, checkpoint event or summary, in the form that loggers
        receive."""
        self.changes: dict[str, list[float]] = {}
        """New values by name of the hyper-parameter: one value, or P values for P learners."""
        self._method, self._params, self._hyper = method, params, hyper
        self._open = True

    @property
    def params(self) -> Params:
        """Copy of the online parameters as NumPy arrays; leaves [P, ...] for a population."""
        self._check_open()
        return jax.tree.map(lambda leaf: np.array(leaf), multihost.local_part(self._params()))

    @property
    def hyper(self) -> dict[str, Any]:
        """Current hyper-parameters by name: float, or [P] float32 for a population."""
        self._check_open()
        values = multihost.local_part(_by_name(self._hyper()))
        learners = self.config.learners
        flat = {name: np.array(leaf).ravel()[:learners] for name, leaf in values.items()}
        return {name: leaf if learners > 1 else float(leaf[0]) for name, leaf in flat.items()}

    def set_hyper(self, **values: Any) -> None:
        """Set hyper-parameters from the next chunk on; checkpoints store them.

        Call this only in ``on_chunk`` and ``on_evaluation``. At ``on_checkpoint`` the state has
        been saved already, and after ``on_end`` no chunk follows.

        Args:
            values: new values by name. A value is a number; for a population it may also be an
                array of P numbers.

        Raises:
            ValueError: if another method calls this, or if a hyper-parameter is unknown, is None in
                the configuration, or has an invalid value.
        """
        self._check_open()
        if self._method not in _MAY_SET:
            raise ValueError(f"set_hyper: must be called in {' or '.join(_MAY_SET)}")
        scalars = self.config.extra_scalars
        for name, value in values.items():
            if name not in SWEEPABLE and name not in scalars:
                raise ValueError(
                    f"{name}={value!r}: must be "
                    f"{known_name('hyper-parameter', name, [*SWEEPABLE, *scalars])}"
                )
            if name in SWEEPABLE and getattr(self.config, name) is None:
                raise ValueError(f"{name}={value!r}: must be set in the configuration, where it is "
                                 "None, so that no program reads it")  # fmt: skip
            flat = np.ravel(np.asarray(value, np.float32))
            if flat.size not in (1, self.config.learners) or not np.all(np.isfinite(flat)):
                raise ValueError(f"{name}={value!r}: must be a finite number, or one for each of "
                                 f"the {self.config.learners} learners")  # fmt: skip
            self.changes[name] = flat.tolist()

    def close(self) -> None:
        """Invalidate the context, because the state that it reads will be donated."""
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("context: must be read before the method of the callback returns")


class CallbackGroup:
    """Callbacks of a run. A callback that raises is dropped, and the run continues.

    Only the coordinator calls the callbacks. It broadcasts their decisions to all processes.

    Args:
        callbacks: callbacks of the caller; the same number on every process.
        config: configuration of the run.
        params: ``Programs.params``
        log_event: function that receives events.
        directory: run directory.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        config: Config,
        params: Callable[[TrainState], Params],
        log_event: Callable[[Record], None],
        directory: Path | None = None,
    ) -> None:
        self._callbacks, self._config = list(callbacks), config
        self.called = bool(callbacks)
        """True if the run has callbacks; equal on all processes."""
        self.at_chunks = any(hasattr(callback, "on_chunk") for callback in callbacks)
        """True if a callback reads the state after every chunk. The state is then not donated to
        the next chunk before the callback returns."""
        self._params, self._log_event, self._directory = params, log_event, directory
        self.reason: str | None = None
        """Reason given by a callback to end the run; None if no callback has ended it."""

    def call(self, method: str, record: Record, state: TrainState) -> TrainState:
        """Call a method of all callbacks that define it; return the state with new scalars."""
        if not self.called:
            return state
        answer = multihost.broadcast(lambda: self._call(method, record, state))
        if answer["reason"] is not None and self.reason is None:
            self.reason = answer["reason"]
        return with_hyper(state, answer["changes"]) if answer["changes"] else state

    def _call(self, method: str, record: Record, state: TrainState) -> Record:
        """Call the callbacks; return the reason to end the run and the changed scalars."""
        changes: dict[str, list[float]] = {}
        reason = None
        for callback in tuple(self._callbacks):
            function = getattr(callback, method, None)
            if function is None:
                continue
            context = CallbackContext(
                method,
                self._config,
                dict(record),
                lambda: self._params(state),
                lambda: state.hyper,
                self._directory,
            )
            try:
                function(context)
            except EndRun as end:
                reason = reason or str(end) or type(callback).__name__
            except Exception as error:
                self._drop(callback, method, error)
                continue
            finally:
                context.close()
            changes.update(context.changes)
        return {"reason": reason, "changes": changes}

    def _drop(self, callback: Any, method: str, error: Exception) -> None:
        self._callbacks = [kept for kept in self._callbacks if kept is not callback]
        name = f"{type(callback).__name__}.{method}"
        reason = f"{name} failed: {type(error).__name__}: {error}"
        warn(f"{reason}; the callback is dropped, and the run continues")
        self._log_event({"event": "callback dropped", "reason": reason})


def as_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return one or several callbacks as a tuple, after checking their methods.

    Raises:
        ValueError: if an object has none of ``METHODS``, or an unknown method ``on_...``.
    """
    given = tuple(callbacks) if isinstance(callbacks, list | tuple) else (callbacks,)
    for callback in given:
        names = [name for name in dir(callback) if name.startswith("on_")]
        unknown = [name for name in names if name not in METHODS]
        if unknown or not names or isinstance(callback, type):
            wrong = f" {unknown[0]}" if unknown else ""
            raise ValueError(
                f"callbacks: must be objects with methods named {', '.join(METHODS)}, not "
                f"{callback!r}{' with' + wrong if wrong else ''}"
            )
    return given


def with_hyper(state: TrainState, changes: dict[str, list[float]]) -> TrainState:
    """Replace hyper-parameters of a state, keeping their shapes and device placement.

    Args:
        state: state of the run, under any mapping.
        changes: new values by name: one value, or P values.
    """

    def like(leaf: Any, values: list[float]) -> Any:
        flat: Any = np.asarray(values, np.float32)
        value = np.full(leaf.shape, flat[0]) if flat.size == 1 else flat.reshape(leaf.shape)
        return jax.device_put(value, leaf.sharding)

    named = _by_name(state.hyper)
    placed = {name: like(named[name], values) for name, values in changes.items()}
    extra = {name: placed.pop(name, leaf) for name, leaf in state.hyper.extra.items()}
    return state._replace(hyper=state.hyper._replace(**placed, extra=extra))


def _by_name(hyper: Hyper) -> dict[str, Any]:
    fields = {name: leaf for name, leaf in hyper._asdict().items() if name != "extra"}
    return {**fields, **hyper.extra}
