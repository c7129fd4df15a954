"""Runs with masks: states without a legal action, policies, exported rows, resharding, flags."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.cli import run as run_command
from jaxdqn.config.config import replace
from jaxdqn.errors import RunFailed
from jaxdqn.export.policy import load_policy
from jaxdqn.replay.export import StoredRows, export_rows, fold_rows, read_rows, write_rows
from jaxdqn.run.chunks import add_parts, metrics_of
from jaxdqn.run.runner import run
from jaxdqn.storage.environment_spec import check_spec, with_spec
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.training.trainer import make_trainer
from tests.toys import POISON, masked, noisy, quick_jit, tiny

CONFIG = tiny(eval_episodes=4, eval_every=0, checkpoint_every=400, hidden_sizes=(8,))
STUCK = """
import jax.numpy as jnp
from jaxdqn.envs import make_environment

def stuck():
    def reset(key):
        return jnp.int32(0), jnp.zeros(1)

    def step(key, state, action):
        state = state + 1
        return state, jnp.full(1, state, jnp.float32), jnp.float32(1), state > 9

    def legal(state):
        return jnp.broadcast_to(state % 10 < 7, (2,))

    return make_environment(reset, step, name="stuck", num_actions=2, legal=legal)
"""


def test_a_state_without_a_legal_action_ends_the_run_with_a_checkpoint(tmp_path, capsys):
    file, out = tmp_path / "parts.py", tmp_path / "run"
    file.write_text(STUCK)
    flags = ["--total-rows", "400", "--num-envs", "4", "--warmup-rows", "32", "--log-every", "100"]
    flags += ["--hidden-sizes", "8", "--batch-size", "8", "--replay-capacity", "256"]
    assert run_command.main(["--environment", f"{file}:stuck", "--out", str(out), *flags]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "legal: " in error
    assert "a mask without a legal action where the episode does not end" in error
    (event,) = [
        one for one in read_lines(out / "events.jsonl") if one["event"] == "environment failed"
    ]
    assert event["reason"] in error
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint.name.endswith("1")  # of the chunk in which it was seen


@pytest.mark.slow
def test_a_run_with_masks_is_saved_resumed_and_its_policy_needs_the_mask(tmp_path):
    out = tmp_path / "run"
    result = run(CONFIG, out=out, environment=masked())
    assert result.summary["best_eval_return_mean"] < POISON
    longer = run(replace(CONFIG, total_rows=500), out=out, environment=masked(), resume=True)
    assert longer.summary["rows"] > result.summary["rows"]

    policy = load_policy(out, environment=masked())
    obs = np.random.default_rng(0).uniform(1, 9, (30, 2)).astype(np.float32)
    for action in range(3):
        only = np.arange(3) == action
        assert policy(obs[0], legal=only) == action
        np.testing.assert_array_equal(policy(obs, legal=np.tile(only, (30, 1))), action)
    free = policy(obs, legal=np.ones((30, 3), bool))
    others = np.ones((30, 3), np.int8)
    others[np.arange(30), free] = 0
    assert (policy(obs, legal=others) != free).all()
    for legal, message in (
        (None, r"legal: must be the mask of legal actions, bool \(3,\)"),
        (np.ones(4, bool), r"legal=bool\(4,\): must be bool \(3,\)"),
        (np.ones(3), r"legal=float64\(3,\): must be bool"),
        (np.zeros(3, bool), "legal: must have at least one legal action"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(obs[0], legal=legal)
    with pytest.raises(ValueError, match="masked was True, is False"):
        load_policy(out, environment=masked(mask=False))

    file = tmp_path / "rows.npz"
    rows = export_rows(longer.state.replay, devices=1)
    write_rows(file, StoredRows(rows, "masked", 3))
    again = read_rows(file)
    np.testing.assert_array_equal(again.rows.legal, rows.legal)
    assert again.rows.legal.shape == (*rows.first.shape, 3)
    config = replace(CONFIG, replay_from=str(file), replay_capacity=2048)
    started = run(config, environment=masked())
    stored = export_rows(started.state.replay, devices=1)
    np.testing.assert_array_equal(stored.legal[: len(rows.legal)], rows.legal)


def rows_of(environment):
    state = quick_jit(make_trainer(tiny(), environment=environment).init)(jax.random.key(0))
    return export_rows(state.replay, devices=1)


@pytest.mark.slow
def test_exported_rows_with_and_without_masks_do_not_mix(tmp_path):
    with_masks, without = rows_of(masked()), rows_of(masked(mask=False))
    taken = np.take_along_axis(with_masks.legal, with_masks.action[..., None], axis=2)[..., 0]
    void = np.roll(with_masks.first, -1, axis=0)
    assert taken[:-1][~void[:-1]].all()
    for rows, spec, message in (
        (with_masks, masked(mask=False).spec, "it has masks of legal actions, and the .* does not"),
        (without, masked().spec, "it has no masks of legal actions, and the environment masks"),
    ):
        with pytest.raises(ValueError, match=message):
            fold_rows(StoredRows(rows, "masked", 3), tiny(), spec)
    file = tmp_path / "rows.npz"
    write_rows(file, StoredRows(with_masks._replace(legal=with_masks.legal[..., :2]), "masked", 3))
    with pytest.raises(ValueError, match=r"legal must be bool\[8, 4, 3\]"):
        read_rows(file)


@pytest.mark.slow
def test_a_policy_of_an_environment_without_masks_takes_none(tmp_path):
    run(tiny(total_rows=100, log_every=100, eval_episodes=2, eval_every=0), out=tmp_path / "run",
        environment=noisy())  # fmt: skip
    policy = load_policy(tmp_path / "run", "last", environment=noisy())
    with pytest.raises(ValueError, match="legal: must be left out; noisy has no masks"):
        policy(np.ones(2), legal=np.ones(2, bool))


def test_runs_from_before_there_were_masks_had_none():
    spec = masked(mask=False).spec
    record = with_spec({}, spec)
    assert record["spec"].pop("masked") is False
    check_spec(record, spec, "run")
    with pytest.raises(ValueError, match="masked was False, is True"):
        check_spec(record, spec._replace(masked=True), "run")


@pytest.mark.slow
def test_a_run_with_masks_resumes_on_another_number_of_devices(tmp_path):
    out = tmp_path / "run"
    run(replace(CONFIG, devices=2), out=out, environment=masked())
    end = run(replace(CONFIG, total_rows=600), out=out, environment=masked(), resume=True)
    assert end.state.actor.timestep.legal.shape == (4, 3)
    assert end.state.replay.storage.legal.bits.shape[1:] == (4, 1)
    assert end.state.replay.storage.reward.max() < POISON


@pytest.mark.slow
def test_counts_of_illegal_actions_add_up_over_the_parts_of_a_chunk():
    def part(illegal):
        trainer = make_trainer(tiny(), environment=masked())
        metrics = jax.eval_shape(trainer.chunk(1), jax.eval_shape(trainer.init, jax.random.key(0)))
        plain = {name: 0 for name in metrics[1]._fields} | {"extra": {}, "diagnostics": {}}
        return {"iterations": 1, "seconds": 1.0, "metrics": {**plain, "illegal": illegal}}

    assert metrics_of(add_parts(part(2), part(3))["metrics"]).illegal == 5
    assert metrics_of(add_parts(part(()), part(()))["metrics"]).illegal == ()
    old = part(())
    del old["metrics"]["illegal"]
    assert metrics_of(add_parts(old, part(()))["metrics"]).illegal == ()
    np.testing.assert_array_equal(metrics_of(part([1, 2])["metrics"]).illegal, [1, 2])


@pytest.mark.parametrize(
    "overrides",
    [
        {"bootstrap": "munchausen", "loss": "quantile"},
        pytest.param(
            {"exploration": "boltzmann", "loss": "categorical", "double": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_with_masks_runs_under_the_checks_for_nan_infinity_and_transfers(overrides):
    with jax.enable_x64(True), jax.debug_nans(True), jax.debug_infs(True):
        trainer = make_trainer(tiny(**overrides), environment=masked())
        state = quick_jit(trainer.init)(jax.random.key(0))
        with jax.transfer_guard("disallow"):
            state, metrics = quick_jit(trainer.step)(state)
        assert jnp.isfinite(metrics.loss)
        wide = [leaf.dtype for leaf in jax.tree.leaves((state, metrics)) if leaf.dtype == "int64"]
        assert not wide


@pytest.mark.slow
def test_a_custom_part_that_takes_illegal_actions_ends_the_run():
    def explore(key, q, exploration):
        return jnp.zeros(q.shape[0], jnp.int32), jnp.ones(q.shape[0])

    with pytest.raises(RunFailed, match="or a custom part took an action that"):
        run(CONFIG, environment=masked(), explore=explore)
