"""Checkpoints: they restore exactly what was written, and damage is always detected."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.storage import checkpoint, restore
from jaxdqn.storage.checkpoint import (
    CHECKPOINTS,
    Checkpointer,
    DamagedCheckpoint,
    Snapshot,
    checkpoint_path,
    rename_damaged,
    steps_of,
)
from jaxdqn.storage.restore import newest_intact, read_meta, read_newest
from jaxdqn.storage.state import restore_keys, snapshot_key_data, to_host
from jaxdqn.training.trainer import make_trainer
from tests.parallel.test_mapping_laws import assert_identical
from tests.toys import noisy, quick_jit, tiny


@pytest.fixture(scope="module")
def state():
    return quick_jit(make_trainer(tiny(), environment=noisy()).init)(jax.random.key(0))


def snapshot_of(state, step, score=None, **meta):
    arrays = to_host(jax.jit(snapshot_key_data)(state))
    params = to_host(state.agent.params)
    return Snapshot(step, arrays, params, params, {"note": "here", **meta}, (), score)


def save(run, state, step, *, keep=2, score=None):
    checkpointer = Checkpointer(run, keep)
    checkpointer.save(snapshot_of(state, step, score))
    checkpointer.wait()


def read(run, state, **options):
    return read_newest(run, lambda meta: jax.eval_shape(lambda: state), **options)


def test_a_state_is_restored_bitwise_with_its_keys(tmp_path, state):
    save(tmp_path, state, 7)
    restored = read(tmp_path, state)
    assert (restored.step, restored.meta["note"], restored.skipped) == (7, "here", ())
    again = jax.jit(lambda arrays: restore_keys(arrays, state))(restored.state)
    assert again.key.dtype == state.key.dtype
    assert_identical(again, state)


def test_a_state_with_empty_arrays_and_unusual_types_is_restored(tmp_path):
    tree = {
        "empty": jnp.zeros((0, 3)),
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "flags": (jnp.array([True, False]), jnp.uint8(200)),
        "nothing": (),
        "not finite": jnp.array([jnp.nan, -jnp.inf, -0.0]),
    }
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(
        Snapshot(1, to_host(tree), {"p": np.ones(1)}, {"p": np.ones(1)}, {}, (), None)
    )
    checkpointer.wait()
    assert_identical(read(tmp_path, tree).state, to_host(tree))


def test_the_saved_state_is_that_at_the_start_of_saving(tmp_path, state):
    checkpointer = Checkpointer(tmp_path, 1)
    moving = jax.tree.map(lambda leaf: leaf.copy(), state)
    before = to_host(jax.jit(snapshot_key_data)(moving))
    expected = jax.tree.map(np.copy, before)
    advance = jax.jit(
        lambda state: state._replace(
            replay=jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state.replay)
        ),
        donate_argnums=0,
    )
    params = to_host(state.agent.params)
    checkpointer.save(Snapshot(1, before, params, params, {}, (), None))
    for _ in range(3):
        moving = advance(moving)
    checkpointer.wait()
    assert_identical(read(tmp_path, state).state, expected)


def test_the_newest_and_the_best_are_kept(tmp_path, state):
    for step, score in enumerate([1.0, 5.0, None, 5.0, 2.0, float("nan")]):
        save(tmp_path, state, step, score=score)
    # The last two, and the oldest of those with the best score.
    assert steps_of(tmp_path / CHECKPOINTS) == [5, 4, 1]


def test_a_step_may_be_saved_again(tmp_path, state):
    save(tmp_path, state, 3)
    other = state._replace(key=jax.random.key(9))
    save(tmp_path, other, 3)
    assert steps_of(tmp_path / CHECKPOINTS) == [3]
    np.testing.assert_array_equal(
        read(tmp_path, state).state.key, jax.random.key_data(jax.random.key(9))
    )


def test_an_unfinished_checkpoint_is_ignored_and_removed(tmp_path, state):
    save(tmp_path, state, 1)
    left = tmp_path / CHECKPOINTS / ".unfinished-2"
    shutil.copytree(checkpoint_path(tmp_path, 1), left)
    (left / "MANIFEST").unlink()
    assert read(tmp_path, state).step == 1
    Checkpointer(tmp_path, 2)
    assert not left.exists()


def test_the_manifest_has_the_format_of_sha256sum(tmp_path, state):
    save(tmp_path, state, 1)
    path = checkpoint_path(tmp_path, 1)
    listed = {line.split("  ")[1] for line in (path / "MANIFEST").read_text().splitlines()}
    found = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert listed == found - {"MANIFEST"}
    # No file contains code that reading would execute.
    assert not [name for name in found if name.endswith((".py", ".pkl", ".pickle"))]


@pytest.fixture(scope="module")
def two(tmp_path_factory, state):
    """A run directory with checkpoints 1 and 2."""
    run = tmp_path_factory.mktemp("run")
    save(run, state, 1)
    save(run, state._replace(key=jax.random.key(2)), 2)
    return run


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 0x10
    file.write_bytes(bytes(content))


def largest(path, under):
    return max(
        (p for p in (path / under).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


DAMAGES = {
    "state, first byte flipped": lambda p: flip(largest(p, "state"), 0),
    "state, middle byte flipped": lambda p: flip(
        largest(p, "state"), largest(p, "state").stat().st_size // 2
    ),
    "state, last byte flipped": lambda p: flip(largest(p, "state"), -1),
    "state metadata flipped": lambda p: flip(p / "state" / "_METADATA", 40),
    "state index flipped": lambda p: flip(p / "state" / "manifest.ocdbt", 20),
    "best parameters flipped": lambda p: flip(largest(p, "best"), 9),
    "last parameters flipped": lambda p: flip(largest(p, "last"), 9),
    "meta flipped": lambda p: flip(p / "meta.json", 100),
    "manifest flipped": lambda p: flip(p / "MANIFEST", 5),
    "a name in the manifest flipped": lambda p: flip(p / "MANIFEST", 70),
    "state cut": lambda p: os.truncate(largest(p, "state"), 10),
    "state emptied": lambda p: os.truncate(largest(p, "state"), 0),
    "meta cut": lambda p: os.truncate(p / "meta.json", 30),
    "meta emptied": lambda p: os.truncate(p / "meta.json", 0),
    "manifest cut within a line": lambda p: os.truncate(p / "MANIFEST", 100),
    "manifest cut between lines": lambda p: (p / "MANIFEST").write_text(
        "".join((p / "MANIFEST").read_text().splitlines(keepends=True)[:-1])
    ),
    "manifest emptied": lambda p: os.truncate(p / "MANIFEST", 0),
    "manifest missing": lambda p: (p / "MANIFEST").unlink(),
    "meta missing": lambda p: (p / "meta.json").unlink(),
    "state missing": lambda p: shutil.rmtree(p / "state"),
    "a file of the state missing": lambda p: largest(p, "state").unlink(),
    "everything missing": lambda p: [shutil.rmtree(p), p.mkdir()],
    "manifest of random bytes": lambda p: (p / "MANIFEST").write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, two, state, damage):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    assert read(run, state).step == 2
    damage(checkpoint_path(run, 2))
    restored = read(run, state)
    assert restored.step == 1
    (line,) = restored.skipped
    assert str(checkpoint_path(run, 2)) in line
    assert "damaged" in line
    assert newest_intact(run) == checkpoint_path(run, 1)
    np.testing.assert_array_equal(restored.state.key, jax.random.key_data(state.key))


def test_if_all_are_damaged_none_is_read_and_all_are_named(tmp_path, two, state):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for step in (1, 2):
        flip(checkpoint_path(run, step) / "meta.json", 50)
    with pytest.raises(ValueError, match="must hold an intact checkpoint") as error:
        read(run, state)
    for step in (1, 2):
        assert str(checkpoint_path(run, step)) in str(error.value)
    assert newest_intact(run) is None


def test_without_checkpoints_the_result_is_none(tmp_path, state):
    assert read(tmp_path, state) is None
    (tmp_path / CHECKPOINTS).mkdir()
    assert read(tmp_path, state) is None


def rewrite_meta(path, **changes):
    """Change the meta of a checkpoint consistently, manifest included."""
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, **changes}))
    lines = (path / "MANIFEST").read_text().splitlines()
    digest = checkpoint.digest(path / "meta.json")
    (path / "MANIFEST").write_text("\n".join([*lines[:-1], f"{digest}  meta.json"]) + "\n")


def test_another_schema_is_rejected_by_name(tmp_path, two, state):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    rewrite_meta(checkpoint_path(run, 2), schema=99)
    with pytest.raises(ValueError, match="schema=99"):
        read(run, state)


def test_a_state_of_another_shape_is_rejected_with_the_name_of_the_leaf(tmp_path, two, state):
    wider = make_trainer(tiny(hidden_sizes=(17,)), environment=noisy())
    target = jax.eval_shape(wider.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"agent\.params.*\[.*17.*must be .*16"):
        read_newest(two, lambda meta: target)
    fewer = state._replace(replay=())
    with pytest.raises(ValueError, match=r"replay\.[\w.]+: missing in the run"):
        read(two, fewer)


def test_a_failed_check_is_not_reported_as_damage(two, state):
    def check(meta):
        raise ValueError("seed=1: must be 0")

    with pytest.raises(ValueError, match="seed=1"):
        read(two, state, check=check)


def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoint(tmp_path, state, monkeypatch):
    checkpointer = Checkpointer(tmp_path, 2)
    checkpointer.save(snapshot_of(state, 1))
    checkpointer.wait()

    def full(path, snapshot):
        Path(path).mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    checkpointer.save(snapshot_of(state, 2))
    with pytest.raises(OSError, match="No space left"):
        checkpointer.wait()
    assert os.listdir(tmp_path / CHECKPOINTS) == [f"{1:09d}"]
    assert read(tmp_path, state).step == 1
    checkpointer.wait()  # the error is raised once


def test_damage_has_a_separate_error_type(tmp_path):
    with pytest.raises(DamagedCheckpoint, match="MANIFEST"):
        read_meta(tmp_path)


def test_a_snapshot_leaves_the_state_donatable(state):
    """A NumPy view of a buffer would prevent its donation."""
    moving = jax.tree.map(lambda leaf: leaf.copy(), state)
    advance = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf, s), donate_argnums=0)
    pointer = moving.replay.storage.obs.unsafe_buffer_pointer()
    held = to_host(jax.jit(snapshot_key_data)(moving))
    after = advance(moving)
    assert after.replay.storage.obs.unsafe_buffer_pointer() == pointer
    np.testing.assert_array_equal(held.replay.storage.obs, after.replay.storage.obs)


def test_a_damaged_checkpoint_is_renamed_and_does_not_displace_new_ones(tmp_path, state):
    save(tmp_path, state, 4)
    save(tmp_path, state, 6)
    (checkpoint_path(tmp_path, 6) / "MANIFEST").unlink()
    restored = read(tmp_path, state)
    assert restored.damaged == (checkpoint_path(tmp_path, 6),)
    rename_damaged(restored.damaged)
    save(tmp_path, state, 5, keep=1)
    assert steps_of(tmp_path / CHECKPOINTS) == [5]
    assert (tmp_path / CHECKPOINTS / f"{6:09d}.damaged").is_dir()
    assert read(tmp_path, state).step == 5


def test_an_unreadable_checkpoint_is_not_reported_as_damaged(tmp_path, state, monkeypatch):
    save(tmp_path, state, 1)

    def deny(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(restore, "digest", deny)
    with pytest.raises(ValueError, match=r"must be readable.*Permission denied"):
        read(tmp_path, state)


def test_a_checkpoint_lists_values_that_are_not_finite_and_can_be_skipped(tmp_path, state):
    save(tmp_path, state, 1)
    reward = state.replay.storage.reward.at[0, 0].set(jnp.nan)
    storage = state.replay.storage._replace(reward=reward)
    save(tmp_path, state._replace(replay=state.replay._replace(storage=storage)), 2)
    assert read_meta(checkpoint_path(tmp_path, 1))["not_finite"] == []
    (entry,) = read_meta(checkpoint_path(tmp_path, 2))["not_finite"]
    assert entry.startswith("replay.storage.reward (1 of")
    assert read(tmp_path, state).step == 2
    assert read(tmp_path, state, finite=True).step == 1
