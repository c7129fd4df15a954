"""Smaller networks that are trained on the Q-values of a policy."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.cli import export as export_command
from jaxdqn.config.config import replace
from jaxdqn.config.presets import preset
from jaxdqn.export.distill import distill, observations
from jaxdqn.run.runner import run
from jaxdqn.types import Row
from tests.export.test_serialized import policy_of
from tests.run.test_run import compiled_once, finished  # noqa: F401 (fixtures)
from tests.toys import masked, noisy, tiny


def rows_of(obs, first, legal=()):
    zeros = np.zeros(first.shape, np.int32)
    return Row(obs, first, zeros, zeros, zeros, zeros)._replace(legal=legal)


def test_stacks_of_a_replay_end_at_the_beginning_of_an_episode():
    obs = np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1)
    first = np.array([[True], [False], [False], [True], [False], [False]])
    stacks, legal = observations(rows_of(obs, first), 3)
    assert legal == ()
    np.testing.assert_array_equal(
        stacks[:, 0], [[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 4], [0, 4, 5], [4, 5, 6]]
    )


def test_a_distilled_policy_has_the_values_and_legal_actions_of_its_teacher(monkeypatch):
    monkeypatch.setattr("jaxdqn.export.distill.STEPS", 1_500)
    teacher, _ = policy_of(masked(), hidden_sizes=(16,))
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(50, 20, 2)).astype(np.float32)
    legal = rng.random((50, 20, 3)) < 0.6
    legal[..., 0] |= ~legal.any(axis=-1)
    student = distill(teacher, tiny(), rows_of(obs, np.zeros((50, 20), bool), legal), (8,))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(each.params)) for each in (student, teacher)]
    assert sizes == [2 * 8 + 8 + 8 * 3 + 3, 2 * 16 + 16 + 16 * 3 + 3]
    actions, values = [], []
    for policy in (teacher, student):
        first = np.zeros(1000, bool)
        taken, _, info = policy.agent.act(
            jax.random.key(0), policy.params, (), obs.reshape(-1, 2), first, None,
            legal.reshape(-1, 3),
        )  # fmt: skip
        actions.append(np.asarray(taken))
        values.append(np.where(legal.reshape(-1, 3), info.q, 0))
    assert legal.reshape(-1, 3)[np.arange(1000), actions[1]].all()
    assert (actions[0] == actions[1]).mean() > 0.9
    assert np.mean((values[0] - values[1]) ** 2) < 0.1 * np.var(values[0])


def test_runs_that_cannot_be_distilled_are_rejected(finished, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=r"distill_to=\[0\]: must be one or more widths"):
        jaxdqn.export_policy(finished.out, tmp_path / "x", distill_to=[0])
    from jaxdqn.export import distill as module

    for changed, message in (
        ({"recurrent": "gru", "warmup_rows": 100}, "must be left out for a recurrent network"),
        ({"replay_in_checkpoint": False}, "must have its replay in its checkpoints"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "read_config", lambda run, new=changed: tiny(**new))
            if "replay_in_checkpoint" in changed:
                restored = SimpleNamespace(meta={"replay": False}), None
                patch.setattr(module, "read_state", lambda *args, _=restored, **own: _)
            with pytest.raises(ValueError, match=message):
                module.read_replay(finished.out, "best", environment=noisy())


@pytest.mark.slow
def test_a_cart_pole_policy_is_distilled_to_32_units(tmp_path, capsys):
    run(replace(preset("cartpole", seed=1), hidden_sizes=(256, 256)), out=tmp_path / "run")
    to = tmp_path / "small"
    flags = [str(tmp_path / "run"), "--to", str(to), "--distill-to", "32"]
    assert export_command.main(flags) == 0
    record = jaxdqn.export_policy(tmp_path / "run", tmp_path / "again", distill_to=[32])
    print(capsys.readouterr().out)
    assert record["weight_bytes"] < 0.02 * record["original_weight_bytes"]
    assert record["action_agreement"] > 0.8
    assert record["return_mean"] > 0.9 * record["original_return_mean"]
