"""Custom losses of a batch, against the built-in losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.networks import from_module
from jaxdqn.training.trainer import make_trainer
from tests.agent.test_agent import BATCH, HYPER, Linear, agent_of, initial_state, random_batch, sgd
from tests.toys import assert_identical, noisy, quick_jit, tiny, watched_run

MODULE = Linear()
WEIGHTS = jnp.linspace(0.5, 1.5, BATCH)


def squared(params, target_params, key, batch, hyper):
    """The squared loss of DQN, and its diagnostics."""
    chosen = jnp.take_along_axis(MODULE.apply(params, batch.obs_tm1), batch.a_tm1[:, None], 1)
    best = jnp.max(MODULE.apply(target_params, batch.obs_t), axis=-1)
    td = batch.r_t + batch.discount_t * best - chosen[:, 0]
    return 0.5 * td**2, {"abs_td": jnp.abs(td), "largest": jnp.max(best), "best": best}


def learned(agent):
    state = initial_state(agent_of(loss="squared"))
    learn = quick_jit(lambda *args: agent.learn(*args, hyper=HYPER))
    return learn(jax.random.key(1), state, random_batch(), WEIGHTS)


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"polyak": True}])
def test_a_batch_loss_learns_as_the_built_in_loss_that_it_equals(options):
    state, info = learned(agent_of(loss=squared, **options))
    expected, wanted = learned(agent_of(loss="squared", **options))
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for name in ("loss", "abs_td", "grad_norm", "q_mean"):
        np.testing.assert_allclose(getattr(info, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)


def test_other_entries_of_the_info_are_metrics():
    _, info = learned(agent_of(loss=squared))
    best = np.max(MODULE.apply(initial_state(agent_of()).target_params, random_batch().obs_t), 1)
    assert set(info.extra) == {"largest", "best"}
    np.testing.assert_allclose(info.extra["largest"], best.max(), rtol=1e-5)
    np.testing.assert_allclose(info.extra["best"], best.mean(), rtol=1e-5)
    _, info = learned(agent_of(loss=squared, accumulate=3))
    largest = best.reshape(3, -1).max(axis=1).mean()
    np.testing.assert_allclose(info.extra["largest"], largest, rtol=1e-5)


def test_the_absolute_loss_is_the_default_priority_and_a_given_mean_of_q_is_taken():
    def loss(params, target_params, key, batch, hyper):
        losses, _ = squared(params, target_params, key, batch, hyper)
        return -losses, {"q_mean": jnp.float32(7)}

    _, info = learned(agent_of(loss=loss))
    wanted = learned(agent_of(loss="squared"))[1]
    np.testing.assert_allclose(info.abs_td, 0.5 * wanted.abs_td**2, rtol=1e-5)
    assert (info.q_mean, info.extra) == (7, {})


def test_the_loss_receives_the_key_of_the_step():
    def loss(params, target_params, key, batch, hyper):
        losses, _ = squared(params, target_params, key, batch, hyper)
        return losses, {"drawn": jax.random.uniform(key)}

    drawn = learned(agent_of(loss=loss))[1].extra["drawn"]
    assert drawn == jax.random.uniform(jax.random.key(1))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda losses: losses, r"loss: must return \(losses, info\)"),
        (lambda losses: (jnp.mean(losses), {}), r"loss: must return losses of shape \(12,\)"),
        (lambda losses: (losses, {"abs_td": jnp.mean(losses)}), r"info\['abs_td'\] of shape \(12,"),
        (lambda losses: (losses, {"own": losses[:3]}), r"info\['own'\] of shape \(\) or \(12,\)"),
    ],
)
def test_a_wrong_result_is_rejected_with_its_shape(result, message):
    def loss(*arguments):
        return result(squared(*arguments)[0])

    with pytest.raises(ValueError, match=message):
        learned(agent_of(loss=loss))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"double": True}, "double=True: must be False with a custom loss"),
        ({"bootstrap": "soft"}, "bootstrap='soft': must be 'greedy' with a custom loss"),
        ({"loss": 3}, "loss=3: must be one of huber"),
    ],
)
def test_options_without_effect_on_a_batch_loss_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        make_agent(from_module(Linear()), sgd, **{"loss": squared, **options})


def of_zeros(params, target_params, key, batch, hyper):
    return 0 * batch.r_t, {"reward": batch.r_t, "one": jnp.float32(1)}


def test_metrics_of_a_loss_are_averaged_over_the_iterations_of_a_chunk():
    trainer = make_trainer(tiny(gradient_steps=2), environment=noisy(), loss=of_zeros)
    start, end, metrics, _ = watched_run(trainer, 4)
    _, reduced = quick_jit(trainer.chunk(4))(start)
    assert reduced.extra["one"] == 1
    assert metrics.extra["reward"].shape == (4,)
    np.testing.assert_allclose(reduced.extra["reward"], metrics.extra["reward"].mean(), rtol=1e-5)
    # The parameters stay: the gradient of the losses is zero.
    assert_identical(start.agent.params, end.agent.params)


@pytest.mark.parametrize("name", ["loss", "return_mean", "not a name"])
def test_names_of_metrics_that_the_records_have_are_rejected(name):
    def loss(params, target_params, key, batch, hyper):
        return 0 * batch.r_t, {name: jnp.float32(1)}

    with pytest.raises(ValueError, match=f"metric '{name}': must be an identifier and none of"):
        make_trainer(tiny(), environment=noisy(), loss=loss)
