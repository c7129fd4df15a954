"""Runs in several threads of one process: all end, and each writes its own directory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from jaxdqn.lazy_modules import imported_lazily
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run import compilation_cache, program_cache
from jaxdqn.run.compilation_cache import programs_kept
from jaxdqn.run.program_cache import compiled_programs, static_run
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.params import restore_params, save_params
from tests.run.test_run import small
from tests.toys import assert_identical, noisy, quick_runs, shared_programs

_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def in_threads(function, count=3):
    """Call a function with 0, 1, ... at the same time, each in a thread."""
    together = threading.Barrier(count)

    def work(index):
        together.wait()
        return function(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


@pytest.mark.slow
def test_runs_in_threads_all_end_as_they_would_alone(tmp_path):
    with shared_programs(tmp_path / "xla"), quick_runs():

        def train(index):
            config = small(seed=index, checkpoint_every=100)
            return run(config, out=tmp_path / str(index), environment=noisy())

        results = in_threads(train)
        alone = run(small(seed=2, checkpoint_every=100), environment=noisy())
    assert_identical(results[2].state, alone.state)
    for index in range(3):
        assert steps_of(tmp_path / str(index) / CHECKPOINTS)[0] == 4
        assert (tmp_path / str(index) / "summary.json").exists()


def test_parameters_are_written_and_read_in_threads(tmp_path):
    params = [jax.numpy.full((64, 64), float(index)) for index in range(3)]

    def write(index):
        for _ in range(3):
            path = tmp_path / str(index) / "best"
            path.parent.mkdir(exist_ok=True)
            save_params(path, {"w": params[index]})
            assert_identical(restore_params(path, {"w": params[index]}), {"w": params[index]})

    in_threads(write)


def test_runs_of_one_shape_compile_once(monkeypatch):
    program_cache.clear()
    compiled = []

    def compile_programs(*arguments):
        compiled.append(arguments)
        threading.Event().wait(0.3)
        return object()

    monkeypatch.setattr(program_cache, "compile_programs", compile_programs)
    config = small()
    keys = learner_keys(config)

    def programs(index):
        parts = {"environment": noisy(), "network": None, "optimizer": None}
        return compiled_programs(static_run(config, keys, parts), config, keys)

    first, *others = in_threads(programs)
    assert all(other is first for other in others)
    assert len(compiled) == 1
    program_cache.clear()


def test_the_setting_of_the_cache_is_restored_after_the_last_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "use_persistent_cache", lambda: True)
    before = getattr(jax.config, _MIN_SECONDS)
    first, second = programs_kept(), programs_kept()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert getattr(jax.config, _MIN_SECONDS) == 0.0
    second.__exit__(None, None, None)
    assert getattr(jax.config, _MIN_SECONDS) == before


def test_placeholders_of_one_thread_are_not_seen_by_another():
    import sys

    def replace(index):
        with imported_lazily("not_a_module"):
            mine = sys.modules["not_a_module"]
            threading.Event().wait(0.02)
            assert sys.modules["not_a_module"] is mine
        return mine

    assert len(set(map(id, in_threads(replace)))) == 3
    assert "not_a_module" not in sys.modules
