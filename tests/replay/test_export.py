"""Exported rows: written, read, divided over environments, and used to start a run."""

import jax
import numpy as np
import pytest

import jaxdqn.storage.checkpoint
from jaxdqn.cli import replay as export
from jaxdqn.config.config import replace, to_dict
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.replay.export import StoredRows, export_rows, fold_rows, read_rows, write_rows
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import Snapshot, checkpoint_path
from jaxdqn.storage.jsonl import write_json
from jaxdqn.storage.state import snapshot_key_data, to_host
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Row
from tests.parallel.test_mapping_laws import assert_identical
from tests.run.test_run import (
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.storage.runs import CONFIG
from tests.toys import noisy, quick_jit, tiny


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_exported_rows_are_those_of_the_replay_and_fill_another_one(tmp_path, devices):
    config = replace(CONFIG, devices=devices)
    first = run(config, out=tmp_path / "run", environment=noisy())
    rows = export_rows(first.state.replay, devices=devices)
    size = int(np.ravel(first.state.replay.size)[0])
    assert rows.first.shape == (size, 4)
    file = tmp_path / "rows.npz"
    write_rows(file, StoredRows(rows, "noisy", 2))
    again = read_rows(file)
    assert_identical(again.rows._replace(extras=()), rows)
    # Read directly from the ring: its newest row is the last in the file.
    ring = jax.device_get(first.state.replay)
    newest = (np.ravel(ring.position)[0] - 1) % ring.storage.reward.shape[-2]
    np.testing.assert_array_equal(ring.storage.reward[..., newest, :].ravel(), rows.reward[-1])

    seen = []
    logger = Logger(log=lambda kind, record: seen.append(record), close=lambda: None)
    second = run(
        replace(config, seed=5, replay_capacity=1024, replay_from=str(file)),
        environment=noisy(),
        loggers=[logger],
    )
    start = export_rows(second.state.replay, devices=devices)
    np.testing.assert_array_equal(start.obs[:size], rows.obs)
    np.testing.assert_array_equal(start.reward[:size], rows.reward)
    assert start.first[0].all()
    assert start.first[size].all()  # the rows of the new run open new episodes


EXPORTED = {
    "population": {"num_seeds": 2, "population": "map"},
    "population over devices": {"num_seeds": 4, "devices": 2, "population": "map"},
    "model mesh": {"devices": 4, "model_devices": 2, "hidden_sizes": (512, 512)},
}


def save_checkpoint(out, config):
    """Write a checkpoint of a run after its warm-up, and return the state."""
    trainer = make_mapped_trainer(config, environment=noisy())
    state = quick_jit(trainer.init)(learner_keys(config).train)
    arrays = to_host(jax.jit(snapshot_key_data)(state))
    out.mkdir()
    write_json(out / "config.json", to_dict(config))
    meta = {"config": to_dict(config), "replay": True}
    params = {"w": np.zeros(1)}
    snapshot = Snapshot(1, arrays, best=params, last=params, meta=meta, records=(), score=None)
    jaxdqn.storage.checkpoint.write(checkpoint_path(out, 1), snapshot)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED)
def test_the_command_exports_the_rows_of_a_learner_and_needs_no_devices(
    tmp_path, case, monkeypatch, capsys
):
    config = replace(CONFIG, **EXPORTED[case])
    state = save_checkpoint(tmp_path / "run", config)
    monkeypatch.setattr("jaxdqn.envs.make_from_arguments", lambda name, arguments: noisy())
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
    rejected = ["0"] if config.learners == 1 else [None, "-1", str(config.learners)]
    capsys.readouterr()
    for learner in rejected:
        flags = [] if learner is None else [f"--learner={learner}"]
        assert export.main([str(tmp_path / "run"), "--to", str(tmp_path / "no.npz"), *flags]) == 2
        error = capsys.readouterr().err
        if config.learners == 1:
            assert "learner=0: must be omitted; the run has one learner" in error
        else:
            assert f"learner={learner}: must be from 0 to {config.learners - 1}" in error
    assert not (tmp_path / "no.npz").exists()


def test_rows_of_sequences_are_exported_without_their_carries(tmp_path):
    config = tiny(
        recurrent="gru", recurrent_size=8, sequence_length=6, warmup_rows=64, replay="prioritized"
    )
    trainer = make_trainer(config, environment=noisy())
    replay = quick_jit(trainer.init)(jax.random.key(0)).replay
    rows = export_rows(replay, devices=1)
    write_rows(tmp_path / "rows.npz", StoredRows(rows, "noisy", 2))
    again = read_rows(tmp_path / "rows.npz").rows
    np.testing.assert_array_equal(again.reward, replay.storage.reward[:16])
    np.testing.assert_array_equal(again.obs, replay.storage.obs[:16])


def test_rows_are_divided_over_other_numbers_of_environments_with_streams_kept_apart():
    steps, envs = 12, 3
    first = np.zeros((steps, envs), bool)
    first[5, 1] = True
    label = (np.arange(envs) * 100 + np.arange(steps)[:, None]).astype(np.float32)
    no = np.zeros((steps, envs), bool)
    rows = make_rows(label, first, no)
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
            # Where one stream ends and another starts, an episode opens.
            assert follows or opens[t, column]
    np.testing.assert_array_equal(np.sort(flat.ravel()), np.sort(label.ravel()))


def make_rows(label, first, no):
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
def test_a_file_that_holds_no_rows_is_rejected(tmp_path, change, message):
    file = tmp_path / "rows.npz"
    rows = make_rows(np.zeros((4, 2), np.float32), np.zeros((4, 2), bool), np.zeros((4, 2), bool))
    write_rows(file, StoredRows(rows, "noisy", 2))
    change(file)
    with pytest.raises(ValueError, match=message):
        run(replace(CONFIG, replay_from=str(file)), environment=noisy())


def test_rows_of_other_observations_or_actions_are_rejected(tmp_path):
    rows = make_rows(np.zeros((8, 4), np.float32), np.zeros((8, 4), bool), np.zeros((8, 4), bool))
    spec = noisy().spec
    with pytest.raises(ValueError, match="has 3 actions, must be 2"):
        fold_rows(StoredRows(rows, "noisy", 3), CONFIG, spec)
    with pytest.raises(ValueError, match="observations are"):
        fold_rows(StoredRows(rows._replace(obs=rows.obs[..., :1]), "noisy", 2), CONFIG, spec)
    few = jax.tree.map(lambda leaf: leaf[:1, :1], rows)
    with pytest.raises(ValueError, match="too few"):
        fold_rows(StoredRows(few, "noisy", 2), CONFIG, spec)
