"""Settings of every test: eight CPU devices, and JAX at its strictest."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings

from jaxdqn.monitoring.curves import plot_runs
from tests.toys import QUICK

# Before the first array: the devices are counted when the backend starts.
jax.config.update("jax_num_cpu_devices", 8)

# Implicit dtype promotion and rank broadcasting are errors; code must convert explicitly.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Each operation of a lowered program otherwise holds the complete traceback.
jax.config.update("jax_include_full_tracebacks_in_locations", False)

# Tracing makes millions of small objects, nearly none of them cyclic: with the default thresholds
# the collector takes a seventh of the suite's time.
gc.freeze()
gc.set_threshold(200_000, 50, 100)

# nohup ignores SIGHUP, and runs then ignore it too; tests send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples on every machine; no deadline, since the first one compiles.
settings.register_profile("jaxdqn", derandomize=True, database=None, deadline=None)
settings.load_profile("jaxdqn")


def pytest_configure(config: pytest.Config) -> None:
    """Compile every program of the fast suite without optimisation, in half the time.

    The flags are read when the backend starts, and are not for the processes that tests start.
    """
    if config.option.markexpr != "not slow":
        return
    with pytest.MonkeyPatch.context() as patch:
        flags = [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={QUICK[name]}" for name in QUICK)]
        patch.setenv("XLA_FLAGS", " ".join(flags))
        jax.devices()


@pytest.fixture(scope="session", autouse=True)
def one_learning_curve() -> Iterator[None]:
    """Draw the learning curve of the first run, and give every later run a copy of that picture.

    A picture takes as long as everything else in a small run. The tests of pictures draw their own.
    """
    pictures: list[bytes] = []

    def copy_of_the_first(runs: Any, out: Path) -> None:
        if not pictures:
            plot_runs(runs, out)
            pictures.append(out.read_bytes())
        out.write_bytes(pictures[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdqn.run.runner.plot_runs", copy_of_the_first)
        yield


@pytest.fixture(autouse=True)
def cpu_dispatch() -> Iterator[None]:
    """Restore the way of dispatch on the CPU, which commands set for their process."""
    before = jax.config.read("jax_cpu_enable_async_dispatch")
    yield
    if jax.config.read("jax_cpu_enable_async_dispatch") != before:
        jax.config.update("jax_cpu_enable_async_dispatch", before)


@pytest.fixture(scope="session", autouse=True)
def own_compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the programs of runs in this session's own directory, not in the user's."""
    directory = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdqn.run.compilation_cache.default_directory", lambda: directory)
        yield
