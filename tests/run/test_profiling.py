"""Profiles: the named regions of a chunk, and the trace of a run."""

import gzip
import json
import re

import jax
import pytest

from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.run.profiling import REGIONS, Profiler, check_profile
from jaxdqn.run.runner import run
from jaxdqn.training.hyper import hyper_from
from tests.run.test_run import small
from tests.toys import noisy, quick_runs, tiny
from tests.training.test_vector_trainer import runner_of


def lowered(**options):
    trainer = make_mapped_trainer(tiny(**options), environment=noisy())
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    return jax.jit(trainer.chunk(2)).lower(state)


def names(region, text):
    """Return whether an operation of a program is in a region."""
    return re.search(rf'["/]{region}/', text) is not None


@pytest.fixture
def full_locations():
    """Keep the complete locations, as JAX does by default, in which the regions are."""
    jax.config.update("jax_include_full_tracebacks_in_locations", True)
    yield
    jax.config.update("jax_include_full_tracebacks_in_locations", False)


@pytest.mark.usefixtures("full_locations")
def test_every_region_is_named_in_the_program_of_a_chunk():
    text = lowered(devices=2, replay="prioritized").as_text(debug_info=True)
    assert [name for name in REGIONS if not names(name, text)] == []


def test_the_names_of_regions_change_no_operation(monkeypatch):
    named = lowered()

    class Unnamed:
        def __init__(self, name):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

        def __call__(self, function):
            return function

    monkeypatch.setattr(jax, "named_scope", Unnamed)
    unnamed = lowered()
    assert names("draw", named.as_text(debug_info=True))
    assert not names("draw", unnamed.as_text(debug_info=True))
    assert named.as_text() == unnamed.as_text()


@pytest.mark.slow
@pytest.mark.usefixtures("full_locations")
def test_a_profiled_run_writes_a_trace_of_the_chunks_after_the_first(tmp_path, monkeypatch):
    calls = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "start_trace",
                        lambda *a, **k: (calls.append("start"), start(*a, **k)))  # fmt: skip
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (calls.append("stop"), stop()))

    class Count:
        def on_chunk(self, context):
            calls.append("chunk")

    with quick_runs():
        run(small(total_rows=700), out=tmp_path / "run", environment=noisy(),
            callbacks=[Count(), Profiler(2)])  # fmt: skip
    assert calls[:6] == ["chunk", "start", "chunk", "chunk", "stop", "chunk"]
    folder = tmp_path / "run" / "profile"
    assert len(names_of_events(folder)) > 100
    # XProf reads the regions from the program that the trace contains.
    (trace,) = folder.rglob("*.xplane.pb")
    content = trace.read_bytes()
    regions = set(REGIONS) - {"all-reduce"}  # one device
    assert [name for name in regions if f"/{name}/".encode() not in content] == []


def names_of_events(folder):
    (trace,) = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return {event.get("name") for event in events}


@pytest.mark.slow
def test_the_trace_names_the_steps_of_environments_on_the_host(tmp_path):
    config = tiny(rollout_length=2, gradient_steps=1, warmup_rows=32)
    runner = runner_of(config)
    try:
        state = runner.init(jax.random.key(0), hyper_from(config))
        with jax.profiler.trace(tmp_path, create_perfetto_trace=True):
            runner.chunk(state, 2)
    finally:
        runner.close()
    assert "env" in names_of_events(tmp_path)


@pytest.mark.parametrize(
    ("chunks", "rows", "message"),
    [
        (0, 1_000, "profile=0: must be between 1 and 9"),
        (10, 1_000, "profile=10: must be between 1 and 9"),
        (1, 50, "profile=1: must be left out of a run of one chunk"),
    ],
)
def test_a_profile_needs_chunks_after_the_first(chunks, rows, message):
    config = tiny(total_rows=rows, log_every=100)
    with pytest.raises(ValueError, match=message):
        check_profile(chunks, config)
    check_profile(None, config)
