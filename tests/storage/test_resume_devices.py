"""Resuming a run on a different number of devices."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdqn.config.config import replace
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.storage.reshard import reshard, state_shape
from jaxdqn.storage.resume import check_same_run, device_changes, resumed_config
from jaxdqn.storage.state import with_key_data
from tests.parallel.test_mapping_laws import assert_identical
from tests.run.test_run import (
    collector,
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.storage.runs import (
    CONFIG,
    Killed,
    interrupted,
    killing,
)
from tests.toys import OPTIMISED, noisy, quick_runs


@pytest.mark.slow
def test_a_run_resumes_on_other_devices_and_reports_it(tmp_path):
    config = replace(CONFIG, devices=2, compression="int8")
    first = interrupted(tmp_path, config)
    seen, logger = collector()
    four = replace(config, devices=4)
    with pytest.raises(Killed):
        run(four, out=tmp_path, resume=True, environment=noisy(), loggers=[logger, killing(4)])
    (message,) = [
        record["message"]
        for kind, record in seen.records
        if kind == "event" and record["event"] == "resumed"
    ]
    assert "devices was 2, is 4" in message
    assert "the compression residuals are reset" in message
    # Then resume on fewer devices, from the checkpoint of the four devices.
    end = run(config, out=tmp_path, resume=True, environment=noisy())
    assert end.state.key.shape == (2,)
    assert end.summary["rows"] > first.summary["rows"]
    assert np.isfinite(end.summary["eval_return_mean"])
    chunks = [record["chunk"] for record in read_lines(tmp_path / "metrics.jsonl")]
    assert chunks == list(range(1, config.num_chunks + 1))


SINGLE = {
    "mapping": "shard_map", "average_every": None, "average_moments": False,
    "outer_optimizer": "none", "outer_learning_rate": 0.7, "outer_momentum": 0.9,
    "compression": "none", "top_k_fraction": 0.01, "powersgd_rank": 2,
}  # fmt: skip


REPLICA_OPTIONS = {
    "int8": ({"compression": "int8"}, "the compression residuals are reset"),
    "top-k": ({"compression": "top_k", "top_k_fraction": 0.1}, "top_k_fraction was 0.1, is 0.01"),
    "averaging": (
        {"average_every": 8, "target_period": 16, "clip_norm": 1.0},
        "the optimiser moments of the replicas are averaged",
    ),
    "averaging of moments": (
        {"average_every": 2, "target_period": 6, "average_moments": True},
        "average_moments was True, is False",
    ),
    "powersgd": ({"compression": "powersgd", "powersgd_rank": 1}, "powersgd_rank was 1, is 2"),
    "outer optimiser": (
        {"average_every": 8, "target_period": 16, "outer_optimizer": "nesterov"},
        "outer_optimizer was nesterov, is none",
    ),
    "pmap": ({"mapping": "pmap"}, "mapping was pmap, is shard_map"),
}


@pytest.mark.parametrize("case", REPLICA_OPTIONS)
def test_a_single_device_may_drop_the_options_of_replicas(case):
    overrides, part = REPLICA_OPTIONS[case]
    two = replace(CONFIG, devices=2, **overrides)
    one = resumed_config(two, replace(two, devices=1, **SINGLE), "keep", Path("there"))
    check_same_run(two, one, Path("there"))
    assert one.iterations_per_chunk == two.iterations_per_chunk
    changes = device_changes(two, one)
    assert {"devices was 2, is 1", part} <= set(changes)
    # With several replicas, all of these options but the mapping must stay the same.
    if case != "pmap":
        name = next(name for name in SINGLE if name in overrides)
        with pytest.raises(ValueError, match=rf"^{name}=.*must be .*as in the run in there"):
            check_same_run(two, replace(two, **SINGLE), Path("there"))
    # A single replica may not become a population.
    with pytest.raises(ValueError, match=r"^num_seeds=2: must be 1"):
        check_same_run(two, replace(one, num_seeds=2), Path("there"))


@pytest.mark.parametrize("case", ["int8", "averaging", "powersgd", "outer optimiser"])
def test_the_optimiser_of_a_single_device_takes_over_the_moments(case):
    two = replace(CONFIG, devices=2, **REPLICA_OPTIONS[case][0])
    one = replace(two, devices=1, **SINGLE)
    shapes = jax.eval_shape(with_key_data, state_shape(two, environment=noisy()))
    numbers = itertools.count(1)
    state = jax.tree.map(
        lambda leaf: np.full(leaf.shape, next(numbers), leaf.dtype), shapes._replace(replay=())
    )
    target = state_shape(one, environment=noisy())
    moved = reshard(state, two, one, target)
    assert jax.tree.structure(moved.agent) == jax.tree.structure(target.agent)
    before = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(state.agent.opt_state)
        if not {"residual", "outer"} & set(re.findall(r"\w+", jax.tree_util.keystr(path)))
    ]
    for leaf, old, like in zip(
        jax.tree.leaves(moved.agent.opt_state),
        before,
        jax.tree.leaves(target.agent.opt_state),
        strict=True,
    ):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        np.testing.assert_array_equal(leaf, old[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", REPLICA_OPTIONS)
def test_a_run_of_replicas_resumes_on_a_single_device_and_reports_what_it_drops(tmp_path, case):
    overrides, part = REPLICA_OPTIONS[case]
    two = replace(CONFIG, devices=2, **overrides)
    interrupted(tmp_path, two)
    seen, logger = collector()
    one = replace(two, devices=1, **SINGLE)
    end = run(one, out=tmp_path, resume=True, environment=noisy(), loggers=[logger])
    (message,) = [
        record["message"]
        for kind, record in seen.records
        if kind == "event" and record["event"] == "resumed"
    ]
    assert part in message
    assert end.state.key.shape == ()
    assert end.summary["rows"] >= one.total_rows
    assert end.summary["bytes_sent_per_gradient_step"] is None
    assert np.isfinite(end.summary["eval_return_mean"])


@pytest.mark.slow
def test_a_population_computes_the_same_on_other_devices(tmp_path):
    config = replace(CONFIG, num_seeds=2, population="map")
    with quick_runs(OPTIMISED):  # only then are different programs bitwise identical
        uninterrupted = run(config, out=tmp_path / "uninterrupted", environment=noisy())
        interrupted(tmp_path / "moved", config)
        moved = run(
            replace(config, devices=2), out=tmp_path / "moved", resume=True, environment=noisy()
        )
    assert_identical(uninterrupted.state, moved.state)
