"""Runs that go on: N + N = 2N, whatever ended the first part."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxdqn.run.runner
import jaxdqn.storage.checkpoint
import jaxdqn.storage.checkpoint_manager
import jaxdqn.storage.resume
from jaxdqn.cli import replay as export
from jaxdqn.cli import run as run_command
from jaxdqn.config.config import replace, to_dict
from jaxdqn.config.presets import PRESETS
from jaxdqn.errors import RunFailed
from jaxdqn.export.policy import load_policy
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.replay.export import StoredRows, export_rows, fold_rows, read_rows, write_rows
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, Snapshot, checkpoint_path, steps_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines, write_json
from jaxdqn.storage.reshard import reshard, state_shape
from jaxdqn.storage.resume import changes_of_place, check_same_run, read_state
from jaxdqn.storage.state import key_data_of, snapshot_key_data, to_host
from tests.parallel.test_mapping_laws import assert_identical
from tests.run.test_run import (
    collector,
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.toys import noisy, quick_jit, tiny

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {
    "seconds", "env_steps_per_second", "gradient_steps_per_second", "compile_seconds",
    "train_seconds", "eval_seconds", "seconds_to_solve", "blocked_seconds",
}  # fmt: skip


def shrunk(config, **overrides):
    """Return a configuration of the same parts that runs in moments: six chunks of 40 rows."""
    values = {
        "num_envs": 4,
        "batch_size": 8,
        "warmup_rows": 64,
        "total_rows": 64 + 240,
        "replay_capacity": 128,  # it wraps around
        "log_every": 40,
        "eval_every": 80,
        "eval_episodes": 3,
        "checkpoint_every": 80,
        "hidden_sizes": tuple(8 for _ in config.hidden_sizes),
    }
    if config.recurrent != "none":  # whose sequences are longer than that
        values |= {"warmup_rows": 128, "total_rows": 128 + 240, "replay_capacity": 256}
    if config.algorithm == "pqn":
        for name in ("batch_size", "warmup_rows", "replay_capacity"):
            del values[name]
        values |= {"total_rows": 240, "rollout_length": 5, "minibatches": 2}
    return replace(config, **{**values, **overrides})


class Killed(BaseException):
    """What a logger throws to end a run at once, as a kill does."""


def killing(chunk):
    def log(kind, record):
        if kind == "metrics" and record["chunk"] == chunk:
            raise Killed

    return Logger(log=log, close=lambda: None)


def without_clocks(record):
    return {name: value for name, value in record.items() if name not in CLOCKS}


def records(out, name):
    return [without_clocks(record) for record in read_lines(out / name)]


def assert_same_run(one, other, one_result, other_result):
    assert_identical(one_result.state, other_result.state)
    assert_identical(one_result.best_params, other_result.best_params)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(one, name) == records(other, name)
        assert records(one, name)
    assert without_clocks(one_result.summary) == without_clocks(other_result.summary)


CASES = {name: (config, {}) for name, config in PRESETS.items()} | {
    "cartpole, two devices": (PRESETS["cartpole"], {"devices": 2}),
    "cartpole, boltzmann and stacks": (
        PRESETS["cartpole"],
        {"exploration": "boltzmann", "frame_stack": 3, "rollout_length": 2, "gradient_steps": 2},
    ),
    "cartpole, prioritised": (PRESETS["cartpole"], {"replay": "prioritized"}),
    "cartpole, prioritised, two devices": (
        PRESETS["cartpole"],
        {"replay": "prioritized", "devices": 2, "priority_exponent": 0.5},
    ),
    "cartpole, deterministic": (PRESETS["cartpole"], {"devices": 2, "deterministic": True}),
    "cartpole, pmap": (PRESETS["cartpole"], {"devices": 2, "mapping": "pmap"}),
    "cartpole, model mesh": (
        PRESETS["cartpole"],
        {"devices": 4, "model_devices": 2, "hidden_sizes": (512, 512)},
    ),
    "cartpole, int8": (PRESETS["cartpole"], {"devices": 2, "compression": "int8"}),
    "cartpole, top-k": (PRESETS["cartpole"], {"devices": 2, "compression": "top_k"}),
    "cartpole, averaging": (
        PRESETS["cartpole"],
        {"devices": 2, "average_every": 2, "target_period": 6},
    ),
    "cartpole, population by map": (PRESETS["cartpole"], {"num_seeds": 2, "population": "map"}),
    "cartpole, population by vmap over devices": (
        PRESETS["cartpole"],
        {"sweep": ("gamma=0.9,0.99",), "num_seeds": 2, "devices": 2, "population": "vmap"},
    ),
}


QUICK = ("cartpole, two devices",)


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_killed_and_resumed_is_never_stopped(tmp_path, case):
    preset, overrides = CASES[case]
    config = shrunk(preset, **overrides)
    assert config.num_chunks == 6
    whole = run(config, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, out=tmp_path / "parts", loggers=[killing(3)])
    # Chunk 3 was run and written down, and is cut off again: the checkpoint is of chunk 2.
    assert len(read_lines(tmp_path / "parts" / "metrics.jsonl")) <= 3
    assert steps_of(tmp_path / "parts" / CHECKPOINTS) == [2]
    with pytest.raises(Killed):
        run(config, out=tmp_path / "parts", resume=True, loggers=[killing(6)])
    parts = run(config, out=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", whole, parts)
    assert (whole.summary["bytes_sent_per_gradient_step"] is None) == (config.replicas == 1)


CONFIG = tiny(eval_episodes=4, eval_every=200, checkpoint_every=100, total_rows=600)


@pytest.mark.slow
def test_a_run_goes_on_over_other_devices_and_says_so(tmp_path):
    config = replace(CONFIG, devices=2, compression="int8")
    first = interrupted(tmp_path, config)
    seen, logger = collector()
    four = replace(config, devices=4)
    with pytest.raises(Killed):
        run(four, out=tmp_path, resume=True, environment=noisy(), loggers=[logger, killing(4)])
    (said,) = [
        record["message"]
        for kind, record in seen.records
        if kind == "event" and record["event"] == "resumed"
    ]
    assert "devices was 2, is 4" in said
    assert "what compression had not yet sent is forgotten" in said
    # And back onto fewer, from what the four left.
    end = run(config, out=tmp_path, resume=True, environment=noisy())
    assert end.state.key.shape == (2,)
    assert end.summary["rows"] > first.summary["rows"]
    assert np.isfinite(end.summary["eval_return_mean"])
    chunks = [record["chunk"] for record in read_lines(tmp_path / "metrics.jsonl")]
    assert chunks == list(range(1, config.num_chunks + 1))


ALONE = {
    "mapping": "shard_map", "average_every": None, "average_moments": False,
    "compression": "none", "top_k_fraction": 0.01,
}  # fmt: skip
TOGETHER = {
    "int8": ({"compression": "int8"}, "what compression had not yet sent is forgotten"),
    "top-k": ({"compression": "top_k", "top_k_fraction": 0.1}, "top_k_fraction was 0.1, is 0.01"),
    "averaging": (
        {"average_every": 8, "target_period": 16, "clip_norm": 1.0},
        "the replicas' own moments are averaged",
    ),
    "averaging of moments": (
        {"average_every": 2, "target_period": 6, "average_moments": True},
        "average_moments was True, is False",
    ),
    "pmap": ({"mapping": "pmap"}, "mapping was pmap, is shard_map"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_one_device_alone_may_leave_out_what_replicas_did_together(case):
    overrides, part = TOGETHER[case]
    two = replace(CONFIG, devices=2, **overrides)
    one = replace(two, devices=1, **ALONE)
    check_same_run(two, one, Path("there"))
    said = changes_of_place(two, one)
    assert {"devices was 2, is 1", part} <= set(said)
    # Where replicas still learn together, all but the mapping must be as it was.
    if case != "pmap":
        name = next(name for name in ALONE if name in overrides)
        with pytest.raises(ValueError, match=rf"^{name}=.*must be .*as in the run in there"):
            check_same_run(two, replace(two, **ALONE), Path("there"))
    # Nor may one alone be given other learners.
    with pytest.raises(ValueError, match=r"^num_seeds=2: must be 1"):
        check_same_run(two, replace(one, num_seeds=2), Path("there"))


@pytest.mark.parametrize("case", ["int8", "averaging"])
def test_the_optimiser_of_one_device_alone_takes_over_the_moments(case):
    two = replace(CONFIG, devices=2, **TOGETHER[case][0])
    one = replace(two, devices=1, **ALONE)
    shapes = jax.eval_shape(key_data_of, state_shape(two, environment=noisy()))
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
        if "residual" not in jax.tree_util.keystr(path)
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
@pytest.mark.parametrize("case", TOGETHER)
def test_a_run_of_replicas_goes_on_alone_and_says_what_it_leaves_out(tmp_path, case):
    overrides, part = TOGETHER[case]
    two = replace(CONFIG, devices=2, **overrides)
    interrupted(tmp_path, two)
    seen, logger = collector()
    one = replace(two, devices=1, **ALONE)
    end = run(one, out=tmp_path, resume=True, environment=noisy(), loggers=[logger])
    (said,) = [
        record["message"]
        for kind, record in seen.records
        if kind == "event" and record["event"] == "resumed"
    ]
    assert part in said
    assert end.state.key.shape == ()
    assert end.summary["rows"] >= one.total_rows
    assert end.summary["bytes_sent_per_gradient_step"] is None
    assert np.isfinite(end.summary["eval_return_mean"])


@pytest.mark.slow
def test_a_population_computes_the_same_on_other_devices(tmp_path):
    config = replace(CONFIG, num_seeds=2, population="map")
    whole = run(config, out=tmp_path / "whole", environment=noisy())
    interrupted(tmp_path / "moved", config)
    moved = run(
        replace(config, devices=2), out=tmp_path / "moved", resume=True, environment=noisy()
    )
    assert_identical(whole.state, moved.state)


def interrupted(out, config=CONFIG, chunk=2, number=signal.SIGTERM):
    def log(kind, record):
        if kind == "metrics" and record["chunk"] == chunk:
            signal.raise_signal(number)

    logger = Logger(log=log, close=lambda: None)
    return run(config, out=out, environment=noisy(), loggers=[logger])


def test_a_signal_or_the_clock_saves_at_the_next_chunk_and_the_run_goes_on(tmp_path):
    config = replace(CONFIG, checkpoint_every=None)  # none is due so soon
    whole = run(config, out=tmp_path / "whole", environment=noisy())
    ended = interrupted(tmp_path / "parts", config, number=signal.SIGINT)
    assert (ended.summary["interrupted"], ended.summary["ended_by"]) == (True, "SIGINT")
    late = replace(config, max_seconds=1e-3)
    ended = run(late, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert (ended.summary["interrupted"], ended.summary["ended_by"]) == (True, "deadline")
    assert ended.summary["rows"] == 32 + 2 * config.iterations_per_chunk * 4
    parts = run(config, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", whole, parts)
    assert whole.summary["ended_by"] == "budget"


def test_by_default_checkpoints_are_taken_by_the_clock(tmp_path, monkeypatch):
    config = replace(CONFIG, checkpoint_every=None)
    run(config, out=tmp_path / "calm", environment=noisy())
    assert steps_of(tmp_path / "calm" / CHECKPOINTS) == [config.num_chunks]
    monkeypatch.setattr(jaxdqn.storage.checkpoint_manager, "SECONDS_BETWEEN", 0.0)
    run(config, out=tmp_path / "hasty", environment=noisy())
    assert len(steps_of(tmp_path / "hasty" / CHECKPOINTS)) >= 2


def test_zero_makes_no_checkpoints_and_cannot_be_resumed(tmp_path):
    config = replace(CONFIG, checkpoint_every=0)
    run(config, out=tmp_path / "run", environment=noisy())
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        run(config, out=tmp_path / "run", environment=noisy(), resume=True)


def test_a_run_that_has_ended_goes_on_only_to_end_again(tmp_path):
    first = run(CONFIG, out=tmp_path / "run", environment=noisy())
    before = {name: records(tmp_path / "run", name) for name in ("metrics.jsonl",)}
    again = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_identical(first.state, again.state)
    assert before == {name: records(tmp_path / "run", name) for name in ("metrics.jsonl",)}
    # Without its checkpoints it cannot go on, and is not begun anew in place of them.
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS)
    with pytest.raises(ValueError, match="must have a checkpoint to resume from"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert before == {name: records(tmp_path / "run", name) for name in ("metrics.jsonl",)}
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_longer_budget_goes_on_where_the_shorter_one_ended(tmp_path):
    longer = replace(CONFIG, total_rows=32 + 6 * 100, log_every=100)
    shorter = replace(longer, total_rows=32 + 3 * 100)
    whole = run(longer, out=tmp_path / "whole", environment=noisy())
    run(shorter, out=tmp_path / "parts", environment=noisy())
    parts = run(longer, out=tmp_path / "parts", environment=noisy(), resume=True)
    assert_identical(whole.state, parts.state)
    assert records(tmp_path / "whole", "metrics.jsonl") == records(
        tmp_path / "parts", "metrics.jsonl"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 1), ("learning_rate", 0.5), ("hidden_sizes", (8,)), ("num_envs", 8), ("gamma", 0.5)],
)
def test_another_configuration_is_refused_by_the_fields_name(tmp_path, field, value):
    interrupted(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=rf"{field}=.*must be .*as in the run"):
        run(
            replace(CONFIG, **{field: value}),
            out=tmp_path / "run",
            environment=noisy(),
            resume=True,
        )
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_budget_that_would_change_what_was_run_is_refused(tmp_path):
    falling = replace(CONFIG, learning_rate_schedule="linear")
    interrupted(tmp_path / "run", falling)
    with pytest.raises(ValueError, match=r"total_rows=900.*schedule spans the budget"):
        run(
            replace(falling, total_rows=900),
            out=tmp_path / "run",
            environment=noisy(),
            resume=True,
        )


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew_and_says_so(tmp_path):
    heard = []
    logger = Logger(log=lambda kind, record: heard.append((kind, record)), close=lambda: None)
    with pytest.raises(Killed):
        run(
            replace(CONFIG, checkpoint_every=10**6),
            out=tmp_path / "run",
            environment=noisy(),
            loggers=[killing(2)],
        )
    whole = run(CONFIG, out=tmp_path / "whole", environment=noisy())
    again = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    messages = [record["message"] for kind, record in heard if "message" in record]
    assert any("starts from the beginning" in message for message in messages)
    # What the first attempt wrote down is put away, not lost.
    assert (tmp_path / "run" / "metrics.jsonl.before-1").stat().st_size > 0
    assert_same_run(tmp_path / "whole", tmp_path / "run", whole, again)


def test_damage_is_said_and_the_checkpoint_before_is_used(tmp_path):
    whole = run(CONFIG, out=tmp_path / "whole", environment=noisy())
    interrupted(tmp_path / "run", chunk=4)
    newest, before, *_ = steps_of(tmp_path / "run" / CHECKPOINTS)
    (checkpoint_path(tmp_path / "run", newest) / "meta.json").write_text("{}")
    heard = []
    logger = Logger(log=lambda kind, record: heard.append((kind, record)), close=lambda: None)
    parts = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    events = [record for kind, record in heard if kind == "event"]
    assert [each["event"] for each in events][:2] == ["damaged", "resumed"]
    assert str(checkpoint_path(tmp_path / "run", newest)) in events[0]["message"]
    assert events[1]["chunk"] == before
    assert_same_run(tmp_path / "whole", tmp_path / "run", whole, parts)


def test_all_damaged_is_an_error_and_nothing_is_overwritten(tmp_path):
    interrupted(tmp_path / "run", chunk=4)
    for step in steps_of(tmp_path / "run" / CHECKPOINTS):
        (checkpoint_path(tmp_path / "run", step) / "MANIFEST").unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="must hold a checkpoint that is whole"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_without_its_replay_a_run_goes_on_but_says_that_it_differs(tmp_path):
    config = replace(CONFIG, replay_in_checkpoint=False)
    interrupted(tmp_path / "run", config)
    heard = []
    logger = Logger(log=lambda kind, record: heard.append((kind, record)), close=lambda: None)
    result = run(config, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    (resumed,) = [r for kind, r in heard if kind == "event" and r["event"] == "resumed"]
    assert "no replay" in resumed["message"]
    # The rows of the filling are counted: they were acted.
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    rows = [record["rows"] for record in metrics]
    steps = set(np.diff(rows))
    assert len(steps) == 2
    assert max(steps) - min(steps) == 32
    assert result.summary["gradient_steps"] == config.total_gradient_steps
    small = sum(
        p.stat().st_size for p in checkpoint_path(tmp_path / "run", 6).rglob("*") if p.is_file()
    )
    run(CONFIG, out=tmp_path / "whole", environment=noisy())
    large = sum(
        p.stat().st_size for p in checkpoint_path(tmp_path / "whole", 6).rglob("*") if p.is_file()
    )
    assert small < large


def test_records_shorter_than_the_checkpoint_says_are_an_error(tmp_path):
    interrupted(tmp_path / "run")
    os.truncate(tmp_path / "run" / "metrics.jsonl", 10)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: must have at least"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)


def test_a_disk_full_at_a_line_of_the_records_ends_the_run_in_one_line(tmp_path, monkeypatch):
    make = jaxdqn.run.runner.make_jsonl_logger

    def full(directory):
        (directory / "metrics.jsonl").symlink_to("/dev/full")
        return make(directory)

    monkeypatch.setattr(jaxdqn.run.runner, "make_jsonl_logger", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        run(CONFIG, out=tmp_path / "run", environment=noisy())


def test_a_broken_pipe_of_a_users_logger_is_not_taken_for_the_disk(tmp_path):
    def log(kind, record):
        if kind == "metrics":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(
            CONFIG,
            out=tmp_path / "run",
            environment=noisy(),
            loggers=[Logger(log=log, close=lambda: None)],
        )


def test_a_last_checkpoint_that_fails_leaves_what_was_learned(tmp_path, monkeypatch):
    def full(place, snapshot):
        raise OSError(28, "No space left on device", str(place))

    monkeypatch.setattr(jaxdqn.storage.checkpoint, "write", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        run(replace(CONFIG, checkpoint_every=None), out=tmp_path / "run", environment=noisy())
    assert (tmp_path / "run" / "summary.json").exists()
    assert load_policy(tmp_path / "run", environment=noisy())(np.ones(2)) in (0, 1)


def test_going_on_where_nothing_began_needs_a_preset(tmp_path, capsys):
    assert run_command.main(["--resume", "--out", str(tmp_path / "nothing")]) == 2
    assert "to begin one, name a preset" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    assert run_command.main(["--from", str(tmp_path / "none.json")]) == 2
    (tmp_path / "list.json").write_text("[]")
    assert run_command.main(["--from", str(tmp_path / "list.json")]) == 2
    (tmp_path / "mine.json").write_text('{"env": "Catch-bsuite", "seed": 7}')
    name, flags = run_command.read_flags(["--from", str(tmp_path / "mine.json"), "--gamma", "0.5"])
    assert (name, flags.env, flags.seed, flags.gamma) == (None, "Catch-bsuite", 7, 0.5)


def test_another_machine_is_said_to_be_one(tmp_path, monkeypatch):
    interrupted(tmp_path / "run")
    before = jaxdqn.storage.resume.machine()
    monkeypatch.setattr(jaxdqn.storage.resume, "machine", lambda: {**before, "jax": "9.9"})
    heard = []
    logger = Logger(log=lambda kind, record: heard.append(record), close=lambda: None)
    run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True, loggers=[logger])
    (message,) = [record["message"] for record in heard if record.get("event") == "resumed"]
    assert f"not bitwise identical, since jax was {jax.__version__}, is 9.9" in message


def test_two_runs_cannot_have_one_directory(tmp_path):
    held = []

    def log(kind, record):
        if kind == "metrics" and not held:
            for resume in (True, False):
                with pytest.raises(ValueError, match=r"in use|new or an empty") as refused:
                    run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=resume)
                held.append(str(refused.value))

    run(
        CONFIG,
        out=tmp_path / "run",
        environment=noisy(),
        loggers=[Logger(log=log, close=lambda: None)],
    )
    assert f"process {os.getpid()}" in held[0]
    # The lock is gone with the run, though its file is there.
    assert (tmp_path / "run" / ".lock").exists()
    run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)


def test_a_run_that_is_killed_can_be_played(tmp_path):
    with pytest.raises(Killed):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), loggers=[killing(4)])
    assert load_policy(tmp_path / "run", environment=noisy())(np.ones(2)) in (0, 1)
    assert load_policy(tmp_path / "run", "last", environment=noisy())(np.ones(2)) in (0, 1)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_with_one_line_and_it_goes_on_later(tmp_path, monkeypatch):
    whole = run(CONFIG, out=tmp_path / "whole", environment=noisy())
    write = jaxdqn.storage.checkpoint.write

    def fills_up(place, snapshot):
        if snapshot.step >= 3:
            raise OSError(28, "No space left on device", str(place))
        write(place, snapshot)

    monkeypatch.setattr(jaxdqn.storage.checkpoint, "write", fills_up)
    with pytest.raises(
        RunFailed, match=r"No space left on device.*is complete: continue with resume"
    ):
        run(CONFIG, out=tmp_path / "run", environment=noisy())
    assert steps_of(tmp_path / "run" / CHECKPOINTS)[0] == 2
    monkeypatch.setattr(jaxdqn.storage.checkpoint, "write", write)
    parts = run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", whole, parts)


def test_resume_must_say_where():
    with pytest.raises(ValueError, match="resume=True: must come with out"):
        run(CONFIG, environment=noisy(), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_rows_exported_are_those_of_the_replay_and_fill_another(tmp_path, devices):
    config = replace(CONFIG, devices=devices)
    first = run(config, out=tmp_path / "run", environment=noisy())
    rows = export_rows(first.state.replay, devices=devices)
    size = int(np.ravel(first.state.replay.size)[0])
    assert rows.first.shape == (size, 4)
    file = tmp_path / "rows.npz"
    write_rows(file, StoredRows(rows, "noisy", 2))
    again = read_rows(file)
    assert_identical(again.rows._replace(extras=()), rows)
    # Sampled by hand: the newest row of the ring is the last in the file.
    ring = jax.device_get(first.state.replay)
    newest = (np.ravel(ring.position)[0] - 1) % ring.storage.reward.shape[-2]
    np.testing.assert_array_equal(ring.storage.reward[..., newest, :].ravel(), rows.reward[-1])

    heard = []
    logger = Logger(log=lambda kind, record: heard.append(record), close=lambda: None)
    second = run(
        replace(config, seed=5, replay_capacity=1024, replay_from=str(file)),
        environment=noisy(),
        loggers=[logger],
    )
    begun = export_rows(second.state.replay, devices=devices)
    np.testing.assert_array_equal(begun.obs[:size], rows.obs)
    np.testing.assert_array_equal(begun.reward[:size], rows.reward)
    assert begun.first[0].all()
    assert begun.first[size].all()  # the run's own rows open episodes of their own


EXPORTED = {
    "population": {"num_seeds": 2, "population": "map"},
    "population over devices": {"num_seeds": 4, "devices": 2, "population": "map"},
    "model mesh": {"devices": 4, "model_devices": 2, "hidden_sizes": (512, 512)},
}


def saved(out, config):
    """Return the state of a run after its warm-up, of which a checkpoint is made."""
    trainer = make_mapped_trainer(config, environment=noisy())
    state = quick_jit(trainer.init)(learner_keys(config).train)
    words = to_host(jax.jit(snapshot_key_data)(state))
    out.mkdir()
    write_json(out / "config.json", to_dict(config))
    meta = {"config": to_dict(config), "replay": True}
    one = {"w": np.zeros(1)}
    snapshot = Snapshot(1, words, best=one, last=one, meta=meta, records=(), score=None)
    jaxdqn.storage.checkpoint.write(checkpoint_path(out, 1), snapshot)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED)
def test_the_command_exports_a_learners_rows_and_needs_no_devices(
    tmp_path, case, monkeypatch, capsys
):
    config = replace(CONFIG, **EXPORTED[case])
    state = saved(tmp_path / "run", config)
    monkeypatch.setattr("jaxdqn.envs.make", lambda name: noisy())
    monkeypatch.setattr("jaxdqn.parallel.build.run_devices", lambda _: pytest.fail("took devices"))
    learners = range(config.learners) if config.learners > 1 else [None]
    found = []
    for learner in learners:
        file, replay = tmp_path / f"{learner}.npz", state.replay
        flags = [] if learner is None else ["--learner", str(learner)]
        assert export.main([str(tmp_path / "run"), "--to", str(file), *flags]) == 0
        if learner is not None:
            replay = jax.tree.map(lambda leaf, i=learner: leaf[i], replay)
        found.append(read_rows(file).rows)
        assert_identical(
            found[-1]._replace(extras=()), export_rows(replay, devices=config.replicas)
        )
        assert found[-1].first.shape[1] == config.num_envs
    assert len({rows.obs.tobytes() for rows in found}) == len(found)
    refused = ["0"] if config.learners == 1 else [None, "-1", str(config.learners)]
    capsys.readouterr()
    for learner in refused:
        flags = [] if learner is None else [f"--learner={learner}"]
        assert export.main([str(tmp_path / "run"), "--to", str(tmp_path / "no.npz"), *flags]) == 2
        said = capsys.readouterr().err
        if config.learners == 1:
            assert "learner=0: must be left out, the run has one learner" in said
        else:
            assert f"learner={learner}: must be from 0 to {config.learners - 1}" in said
    assert not (tmp_path / "no.npz").exists()


def test_rows_fold_into_other_numbers_of_environments_with_streams_apart():
    steps, envs = 12, 3
    first = np.zeros((steps, envs), bool)
    first[5, 1] = True
    label = (np.arange(envs) * 100 + np.arange(steps)[:, None]).astype(np.float32)
    no = np.zeros((steps, envs), bool)
    rows = export_like(label, first, no)
    spec = noisy().spec
    stored = StoredRows(rows, "noisy", spec.num_actions)
    config = tiny(num_envs=2, rollout_length=2, batch_size=8, replay_capacity=64, warmup_rows=16)
    folded = fold_rows(stored, config, spec)
    assert folded.first.shape[1:] == (2, 2)
    flat = folded.reward.reshape(-1, 2)
    opens = folded.first.reshape(-1, 2)
    assert flat.shape[0] == 18
    for column in range(2):
        assert opens[0, column]
        for t in range(1, 18):
            follows = flat[t, column] == flat[t - 1, column] + 1
            # Where the stream changes, an episode opens.
            assert follows or opens[t, column]
    np.testing.assert_array_equal(np.sort(flat.ravel()), np.sort(label.ravel()))


def export_like(label, first, no):
    from jaxdqn.types import Row

    obs = np.repeat(label[..., None], 2, axis=-1)
    return Row(obs, first, np.zeros(label.shape, np.int32), label, no, no)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_bytes(b"PK\x03\x04nothing"), "must be a file that"),
        (lambda file: file.write_bytes(b""), "must be"),
        (lambda file: file.unlink(), "must be readable"),
        (lambda file: np.savez(file, obs=np.zeros(3)), "must be a file that"),
        (
            lambda file: np.savez(file, meta=np.array([object()], dtype=object)),
            "must be a file that",  # pickles are not read
        ),
    ],
)
def test_a_file_that_is_no_replay_is_refused(tmp_path, change, message):
    file = tmp_path / "rows.npz"
    rows = export_like(np.zeros((4, 2), np.float32), np.zeros((4, 2), bool), np.zeros((4, 2), bool))
    write_rows(file, StoredRows(rows, "noisy", 2))
    change(file)
    with pytest.raises(ValueError, match=message):
        run(replace(CONFIG, replay_from=str(file)), environment=noisy())


def test_rows_of_other_observations_or_actions_are_refused(tmp_path):
    rows = export_like(np.zeros((8, 4), np.float32), np.zeros((8, 4), bool), np.zeros((8, 4), bool))
    spec = noisy().spec
    with pytest.raises(ValueError, match="has 3 actions, must be 2"):
        fold_rows(StoredRows(rows, "noisy", 3), CONFIG, spec)
    with pytest.raises(ValueError, match="observations are"):
        fold_rows(StoredRows(rows._replace(obs=rows.obs[..., :1]), "noisy", 2), CONFIG, spec)
    few = jax.tree.map(lambda leaf: leaf[:1, :1], rows)
    with pytest.raises(ValueError, match="too few"):
        fold_rows(StoredRows(few, "noisy", 2), CONFIG, spec)


def command(*arguments, environment):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("waits", [[0.2, 0.5, 0.9]])
def test_a_process_killed_at_any_moment_goes_on_from_the_command_line(tmp_path, waits):
    flags = [
        "catch", "--num-envs", "4", "--batch-size", "8", "--replay-capacity", "4000",
        "--hidden-sizes", "8", "--total-rows", "40000", "--log-every", "400", "--eval-every",
        "8000", "--eval-episodes", "8", "--checkpoint-every", "400", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    reference = [*flags[:-1], str(tmp_path / "whole")]
    process = command(*reference, environment=environment)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    kills = 0
    for wait in waits:
        process = command(*flags, "--resume", environment=environment)
        directory = tmp_path / "run" / CHECKPOINTS
        before = steps_of(directory)
        while process.poll() is None and steps_of(directory) == before:
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    process = command("--out", str(tmp_path / "run"), "--resume", environment=environment)
    said, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    assert kills
    assert "resumes from" in said
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(tmp_path / "run", name) == records(tmp_path / "whole", name)
    summaries = [
        without_clocks(json.loads((tmp_path / which / "summary.json").read_text()))
        for which in ("run", "whole")
    ]
    assert summaries[0] == summaries[1]
    # Parameters, optimiser and replay too, as the last checkpoints hold them.
    config = read_config(tmp_path / "run")
    ends = [read_state(tmp_path / which, config)[0] for which in ("run", "whole")]
    assert ends[0].step == ends[1].step
    assert_identical(ends[0].state, ends[1].state)
    file = tmp_path / "rows.npz"
    assert export.main([str(tmp_path / "run"), "--to", str(file)]) == 0
    assert export.main([str(tmp_path / "run"), "--to", str(file)]) == 2  # it exists
    assert read_rows(tmp_path / "rows.npz").rows.first.shape == (1000, 4)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_and_cartpole_is_solved(tmp_path):
    """Nothing is lost but the chunk in flight and the one whose checkpoint was being written."""
    out, chance = tmp_path / "run", random.Random(0)
    flags = [
        "cartpole", "--checkpoint-every", "640", "--log-every", "640", "--eval-every", "6400",
        "--out", str(out), "--resume",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    kills, lost = 0, []
    while True:
        process = command(*flags, environment=environment)
        before = steps_of(out / CHECKPOINTS)
        if kills < 50:
            # Half of them while the run starts, half soon after its first new checkpoint.
            if kills % 2:
                while process.poll() is None and steps_of(out / CHECKPOINTS) == before:
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.1))
            else:
                time.sleep(chance.uniform(0, 6))
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, complaint = process.communicate(timeout=300)
        if kills and process.returncode == -signal.SIGKILL:
            written = read_lines(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []
            reached = written[-1]["chunk"] if written else 0
            lost.append(reached - max(steps_of(out / CHECKPOINTS), default=0))
            continue
        assert process.returncode == 0, complaint
        break
    assert kills == 50
    assert max(lost) <= 2, lost
    summary = json.loads((out / "summary.json").read_text())
    assert summary["solved"]
    chunks = [record["chunk"] for record in read_lines(out / "metrics.jsonl")]
    assert chunks == list(range(1, len(chunks) + 1))


# Orbax's threads and coroutines end as they may when the disk is full.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root")
@pytest.mark.slow
def test_a_disk_that_really_is_full_leaves_a_run_that_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        config = replace(CONFIG, replay_capacity=4096, keep=20, total_rows=4000, log_every=100)
        with pytest.raises((RunFailed, ValueError)) as refused:
            run(config, out=disk / "run", environment=noisy())
        assert "No space left" in str(refused.value) or "is whole" in str(refused.value)
        assert steps_of(disk / "run" / CHECKPOINTS)
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        parts = run(config, out=disk / "run", environment=noisy(), resume=True)
        whole = run(config, out=tmp_path / "whole", environment=noisy())
        assert_same_run(tmp_path / "whole", disk / "run", whole, parts)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_without_permission_is_refused_in_one_line(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    interrupted(tmp_path / "run")
    (tmp_path / "run").chmod(0o500)
    with pytest.raises((ValueError, RunFailed), match=r"must be writable|Permission denied"):
        run(CONFIG, out=tmp_path / "run", environment=noisy(), resume=True)
