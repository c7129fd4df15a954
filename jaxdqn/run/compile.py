"""Compiled programs of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdqn.backend_choices import backend, choices, dispatches_asynchronously
from jaxdqn.config.config import Config
from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.parallel.data_parallel import single_pass_loop
from jaxdqn.parallel.learners import RunKeys, learner_hypers
from jaxdqn.parallel.sharded_transfer import broadcast_sharded
from jaxdqn.run.interrupt import COMPILING
from jaxdqn.storage.state import lacks_replay, restore_keys, snapshot_key_data, without_replay
from jaxdqn.training.evaluation import EPSILON, EvalInfo, make_evaluator
from jaxdqn.types import Array, Counters, Hyper, Metrics, Params, PyTree, Row, Trainer, TrainState

_CHECK_SECONDS = 0.1
"""Time between two checks for a stop request while programs are compiled."""

Chunk = Callable[[TrainState], tuple[TrainState, tuple[Metrics, Counters]]]
"""``chunk(state) -> (state, (metrics, counters))``; donates the state."""


class Programs(NamedTuple):
    """Compiled programs that the host calls.

    The fields from ``init`` to ``snapshot`` and ``evaluate_one`` are compiled before the run
    starts, so the run's clock excludes their compilation.
    Programs return the counters separately, because the state is donated to the next chunk.
    """

    init: Callable[[Array, Hyper], tuple[TrainState, Counters]]
    chunk: Chunk
    evaluate: Callable[[Params, Array, np.int32], EvalInfo]
    """``evaluate(params, key, count)``: evaluate with the key ``fold_in(key, count)``. For a
    population, all arguments except ``count`` and all results have leaves [P, ...]."""
    copy: Callable[[Params], Params]
    snapshot: Callable[[TrainState], PyTree]
    """Copy of the state, with keys as integers."""

    params: Callable[[TrainState], Params]
    """``Trainer.params``"""
    revive: Callable[[PyTree], TrainState]
    """State restored from a snapshot."""
    evaluate_one: Callable[[Params, Array, np.int32], EvalInfo]
    """``evaluate`` for the parameters of one learner."""
    evaluate_at_epsilon: Callable[[Params, Array, np.int32], EvalInfo]
    """``evaluate_one`` with an epsilon-greedy policy, epsilon ``EPSILON``."""
    refill: Callable[[TrainState], tuple[TrainState, Counters]]
    preload: Callable[[Array, Row, Hyper], tuple[TrainState, Counters]]
    perturb: Callable[[TrainState, np.int32, np.float32], TrainState]
    """``perturb(state, count, factor)``: fold ``count`` into the random keys and multiply the
    learning rate by ``factor``; donates the state."""
    part_of_chunk: Callable[[int], Future[Chunk]]
    """``part_of_chunk(iterations)``: ``chunk`` for fewer iterations. The first call for each number
    traces the program in the calling thread and compiles it in another."""
    least_first_part: int = 1
    """Minimum number of iterations in a part of the first chunk. On Ray, a shorter part may have no
    rows."""
    stop_evaluations: Callable[[Callable[[], bool]], None] = lambda stop: None
    """``stop_evaluations(stop)``: from now on, an evaluation on the host raises
    ``EvaluationStopped`` when ``stop()`` returns True. Evaluations on the device cannot be
    interrupted."""
    env_failures: Callable[[], Sequence[EnvironmentFailed]] = lambda: ()
    """``env_failures()``: the failures so far that caused environments on the host to be
    restarted."""
    iterations_done: Callable[[int], int] = lambda iterations: iterations
    """``iterations_done(iterations)``: number of iterations that the last call of a program of so
    many iterations has completed. Only on Ray a stop request may end a call early."""
    time_shares: Callable[[], dict[str, float]] = dict
    """``time_shares()``: share of the time of each part of the chunks since the last call, with
    environments on the host; empty if a chunk is one program."""
    runs_ahead: bool = False
    """True if ``chunk`` is dispatched asynchronously and only results that are not finite can end
    the run. The next chunk may then be dispatched at once."""
    close: Callable[[], None] = lambda: None
    """Release the resources of a single run: the environments on the host."""


class _Layout(NamedTuple):
    """Shapes of arguments (with shardings on several devices), and shardings of results."""

    state: TrainState
    params: Params
    state_out: PyTree | None
    report_out: NamedSharding | None
    """Replicated: every process reads metrics and counters."""


def compile_programs(
    config: Config,
    trainer: Trainer,
    keys: RunKeys,
    state_shape: TrainState,
    check: Callable[[], None] = lambda: None,
) -> Programs:
    """Compile the programs that every run calls; the others are compiled at their first call.

    Args:
        config: configuration of the run.
        trainer: trainer of the run.
        keys: random keys of the run.
        state_shape: shapes of the state.
        check: called after each trace, and about every 0.1 s while programs compile. An exception
            that it raises ends the wait; other threads then finish the compilations in progress,
            because XLA cannot be stopped.
    """
    layout = _layout_of(trainer, state_shape)
    options = compiler_options(config)
    later = partial(jax.jit, compiler_options=options)
    counted_out = (layout.state_out, layout.report_out)
    evaluate = _make_evaluate(config, trainer, config.eval_epsilon)
    saved = layout.state if config.replay_in_checkpoint else without_replay(layout.state)
    init, chunk, evaluate_all, copy, snapshot, *of_one = compile_all(
        (
            (
                jax.jit(_with_counters(trainer, trainer.init), out_shardings=counted_out),
                (keys.train, learner_hypers(config)),
            ),
            (_jit_chunk(trainer, config.iterations_per_chunk, layout), (layout.state,)),
            (
                jax.jit(trainer.over_params(evaluate)),
                (layout.params, keys.evaluate, np.int32(0)),
            ),
            (jax.jit(lambda params: jax.tree.map(jnp.copy, params)), (layout.params,)),
            (jax.jit(snapshot_key_data), (saved,)),
            *_evaluation_of_one(config, evaluate, layout.params, keys),
        ),
        options,
        check,
    )
    return Programs(
        init=init,
        chunk=chunk,
        evaluate=evaluate_all,
        copy=copy,
        snapshot=snapshot,
        params=trainer.params,
        revive=make_revive(layout.state, layout.state_out, options),
        evaluate_one=of_one[0] if of_one else evaluate_all,
        evaluate_at_epsilon=later(_at_epsilon(config, trainer)),
        refill=later(_with_counters(trainer, trainer.refill), out_shardings=counted_out),
        preload=later(_with_counters(trainer, trainer.preload), out_shardings=counted_out),
        perturb=later(perturb, out_shardings=layout.state_out, donate_argnums=0),
        part_of_chunk=_make_part_of_chunk(trainer, layout, options),
        # With masks, an illegal action ends the run with a checkpoint of that action's chunk.
        runs_ahead=jax.process_count() == 1
        and not trainer.environment.spec.masked
        and dispatches_asynchronously(),
    )


def _evaluation_of_one(
    config: Config, evaluate: Callable[..., EvalInfo], params: Params, keys: RunKeys
) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the evaluation of one learner of a population, with its arguments; [] otherwise."""
    if config.learners == 1:
        return []
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    return [(jax.jit(evaluate), (one, keys.evaluate[0], np.int32(0)))]


def _layout_of(trainer: Trainer, state_shape: TrainState) -> _Layout:
    if trainer.sharding is None:
        return _Layout(state_shape, trainer.params(state_shape), None, None)
    state_out = trainer.sharding(state_shape)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state_shape,
        state_out,
    )
    report_out = NamedSharding(jax.tree.leaves(state_out)[0].mesh, PartitionSpec())
    return _Layout(state, trainer.params(state), state_out, report_out)


def compile_all(
    jitted: Sequence[tuple[Any, tuple[Any, ...]]],
    options: dict[str, Any] | None,
    check: Callable[[], None],
) -> list[Any]:
    """Compile functions for their arguments.

    XLA releases the GIL while it compiles, so one program compiles while the next is traced.
    """
    pool = ThreadPoolExecutor(len(jitted), COMPILING)
    try:
        compiling = []
        for function, arguments in jitted:
            compiling.append(pool.submit(function.lower(*arguments).compile, options))
            check()
        pending = set(compiling)
        while pending:
            done, pending = wait(pending, _CHECK_SECONDS, FIRST_EXCEPTION)
            for program in done:
                program.result()  # raises its error without waiting for the others
            check()
        return [program.result() for program in compiling]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _at_epsilon(config: Config, trainer: Trainer) -> Any:
    """Return the epsilon-greedy evaluation of one learner, with epsilon ``EPSILON``."""
    evaluate = _make_evaluate(config, trainer, EPSILON)
    return trainer.over_params(evaluate) if config.learners == 1 else evaluate


def _make_evaluate(
    config: Config, trainer: Trainer, epsilon: float
) -> Callable[[Params, Array, Array], EvalInfo]:
    evaluate = make_evaluator(
        trainer.agent,
        trainer.environment,
        config.eval_episodes,
        frame_stack=config.frame_stack,
        epsilon=epsilon,
    )
    return lambda params, key, count: evaluate(params, jax.random.fold_in(key, count))


def _with_counters(
    trainer: Trainer, function: Callable[..., TrainState]
) -> Callable[..., tuple[TrainState, Counters]]:
    """Wrap a function that returns a state so that it returns ``(state, counters)``."""

    def counted(*arguments: Any) -> tuple[TrainState, Counters]:
        state = function(*arguments)
        return state, trainer.counters(state)

    return counted


def _jit_chunk(trainer: Trainer, iterations: int, layout: _Layout) -> Any:
    chunk = trainer.chunk(iterations)
    if iterations == 1 and not trainer.mapped:
        # XLA would otherwise remove the loop of one iteration and copy the ring of the replay.
        chunk = single_pass_loop(chunk)

    def run_chunk(state: TrainState) -> tuple[TrainState, tuple[Metrics, Counters]]:
        state, metrics = chunk(state)
        return state, (metrics, trainer.counters(state))

    out = (layout.state_out, layout.report_out)
    return jax.jit(run_chunk, donate_argnums=0, out_shardings=out)


def _make_part_of_chunk(
    trainer: Trainer, layout: _Layout, options: dict[str, Any] | None
) -> Callable[[int], Future[Chunk]]:
    compiled: dict[int, Future[Chunk]] = {}
    pool, lock = ThreadPoolExecutor(1, "compile"), threading.Lock()

    def part_of_chunk(iterations: int) -> Future[Chunk]:
        with lock:
            if iterations not in compiled:
                # Trace in this thread, because JAX settings may be local to the caller's thread.
                lowered = _jit_chunk(trainer, iterations, layout).lower(layout.state)
                compiled[iterations] = pool.submit(lowered.compile, options)
            return compiled[iterations]

    return part_of_chunk


def finished(program: Chunk) -> Future[Chunk]:
    """Return a future whose result is ``program``."""
    future: Future[Chunk] = Future()
    future.set_result(program)
    return future


def make_revive(
    state: TrainState, state_out: PyTree | None, options: dict[str, Any] | None
) -> Callable[[PyTree], TrainState]:
    """Make ``Programs.revive`` from the shapes of a state and its shardings.

    ``state_out`` is None if the state is not sharded.
    """

    def revive(key_data: PyTree) -> TrainState:
        shape, out = state, state_out
        if lacks_replay(key_data):
            shape, out = without_replay(shape), None if out is None else without_replay(out)
        if jax.process_count() > 1:
            key_data = broadcast_sharded(key_data, out)
        restore = jax.jit(
            lambda key_data: restore_keys(key_data, shape),
            out_shardings=out,
            compiler_options=options,
        )
        return restore(key_data)

    return revive


def perturb(state: TrainState, count: Array, factor: Array) -> TrainState:
    """Fold ``count`` into the key of a state and scale its learning rate by ``factor``."""
    fold = jax.random.fold_in
    # With several devices the keys are [D], one for each device.
    fold = fold if state.key.ndim == 0 else jax.vmap(fold, (0, None))
    key = fold(state.key, count)
    hyper = state.hyper._replace(learning_rate=state.hyper.learning_rate * factor)
    return state._replace(key=key, hyper=hyper)


def compiler_options(config: Config) -> dict[str, Any] | None:
    """Return the XLA compiler options for the programs of a run."""
    options = dict(choices().compiler_options)
    if config.deterministic and backend() == "gpu":
        options["xla_gpu_deterministic_ops"] = True
    return options or None
