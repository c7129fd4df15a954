"""Runs with a registered loss, in processes that have not registered it."""

import json

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.config import loss_registry
from jaxdqn.losses import q_target, squared_loss, td_error
from jaxdqn.run import run
from jaxdqn.storage.directory import PARTS, read_config
from jaxdqn.storage.loss_record import LOSS, register_recorded_loss
from jaxdqn.training.trainer import make_trainer
from tests.agent.test_agent import agent_of
from tests.agent.test_batch_loss import learned
from tests.toys import noisy, quick_runs, tiny


def cubic(example, hyper):
    td = abs(td_error(example.online_tm1.q_values, example.a_tm1, q_target(example)))
    return td**3, td


def squared(example, hyper):
    td = td_error(example.online_tm1.q_values, example.a_tm1, q_target(example))
    return squared_loss(td), abs(td)


@pytest.fixture
def registry():
    """Restore the registered losses after the test."""
    before = dict(loss_registry.LOSSES)
    yield loss_registry.LOSSES
    loss_registry.LOSSES.clear()
    loss_registry.LOSSES.update(before)


def test_a_loss_is_registered_again_under_its_name(registry):
    losses = []
    for function in (cubic, squared, cubic):
        jaxdqn.register_loss("own", function)
        losses.append(float(learned(agent_of(loss="own"))[1].loss))
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("record", [{"head": "values"}, {"name": None, "head": "values"}, {}, None])
def test_a_record_without_a_name_registers_no_loss(registry, tmp_path, record):
    before = dict(registry)
    (tmp_path / PARTS).write_text(json.dumps({LOSS: record}))
    register_recorded_loss(tmp_path / PARTS)
    assert registry == before


@pytest.mark.slow
def test_a_policy_is_loaded_without_the_loss_of_its_run(registry, tmp_path):
    jaxdqn.register_loss("own", cubic)
    out = tmp_path / "run"
    with quick_runs():
        run(tiny(loss="own", eval_episodes=2), out=out, environment=noisy())
    obs = np.array([[1.0, 2.0], [7.0, 3.0]], np.float32)
    expected = jaxdqn.load_policy(out, environment=noisy())(obs)
    del registry["own"]
    np.testing.assert_array_equal(jaxdqn.load_policy(out, environment=noisy())(obs), expected)
    trainer = make_trainer(read_config(out), environment=noisy())
    with pytest.raises(ValueError, match=r"loss='own': must be registered by jaxdqn.register_loss"):
        jax.eval_shape(trainer.step, jax.eval_shape(trainer.init, jax.random.key(0)))
    # With the loss registered again, the run can learn.
    jaxdqn.register_loss("own", cubic)
    trainer = make_trainer(read_config(out), environment=noisy())
    jax.eval_shape(trainer.step, jax.eval_shape(trainer.init, jax.random.key(0)))


def test_a_loss_of_another_head_than_in_the_run_is_rejected(registry, tmp_path):
    jaxdqn.register_loss("own", cubic)
    (tmp_path / "config.json").write_text(json.dumps({"loss": "own"}))
    record = {"registered_loss": {"name": "own", "head": "quantile"}}
    (tmp_path / PARTS).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="head='linear': must be 'quantile' for loss='own'"):
        read_config(tmp_path)
    del registry["own"]
    assert read_config(tmp_path).loss == "own"
    assert registry["own"].head == "quantile"
