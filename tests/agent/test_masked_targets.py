"""Targets with masks: those of a network that has the legal actions only.

The network is a table, so that illegal actions can be left out of it, or have any value.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.sequence_loss import Sequences, make_sequence_loss
from jaxdqn.agent.transition_loss import make_transition_loss
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.losses import quantile_midpoints
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Atoms, Batch, Network, QOutput, Quantiles, Row
from tests.toys import quick_jit, tiny

STATES, ACTIONS, SIZE, LENGTH = 4, 5, 16, 6
ALWAYS = np.array([False, True, True, False, True])
"""The legal actions of a mask that is the same in all states."""
HUGE = np.float32(1e9)
HYPER = hyper_from(tiny())._replace(entropy_temperature=jnp.float32(0.3))
ATOMS = np.linspace(-3, 3, 7, dtype=np.float32)
VARIANTS = {
    "dqn": {"loss": "huber"},
    "double": {"loss": "squared", "double": True},
    "soft": {"loss": "huber", "bootstrap": "soft"},
    "munchausen": {"loss": "huber", "bootstrap": "munchausen"},
    "categorical": {"loss": "categorical"},
    "double categorical": {"loss": "categorical", "double": True},
    "quantile": {"loss": "quantile"},
    "double implicit quantile": {"loss": "implicit_quantile", "double": True},
    "munchausen quantile": {"loss": "implicit_quantile", "bootstrap": "munchausen"},
}


def network_of(loss):
    """Return a network whose output is the table of its parameters, [STATES, A, Z]."""

    def output(table):
        if LOSSES[loss].head == "linear":
            return QOutput(table[..., 0])
        if LOSSES[loss].head == "categorical":
            atoms = jnp.broadcast_to(jnp.asarray(ATOMS), (table.shape[0], len(ATOMS)))
            mean = jnp.sum(jax.nn.softmax(table) * atoms[:, None, :], axis=-1)
            return QOutput(mean, Atoms(table, atoms))
        shape = table.shape[0], table.shape[2]
        fractions = jnp.broadcast_to(quantile_midpoints(shape[1])[None], shape)
        return QOutput(jnp.mean(table, axis=-1), Quantiles(table, fractions))

    def apply(params, key, carry, obs, first):
        return output(params[jnp.argmax(obs, axis=-1)]), carry

    return Network(init=None, apply=apply, initial_carry=lambda size: ())


def tables(loss, seed=0):
    width = {"linear": 1, "categorical": len(ATOMS)}.get(LOSSES[loss].head, 3)
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(STATES, ACTIONS, width)).astype(np.float32) for _ in range(2)]


def batch_of(legal, seed=1):
    """Return transitions whose actions are legal, with masks [STATES, A] by state."""
    rng = np.random.default_rng(seed)
    start, after = rng.integers(STATES, size=(2, SIZE))
    actions = [rng.choice(np.flatnonzero(legal[state])) for state in start]
    return Batch(
        obs_tm1=np.eye(STATES, dtype=np.float32)[start],
        a_tm1=np.array(actions, np.int32),
        r_t=rng.normal(size=SIZE).astype(np.float32),
        discount_t=np.where(rng.random(SIZE) < 0.25, 0, 0.9).astype(np.float32),
        obs_t=np.eye(STATES, dtype=np.float32)[after],
        legal_tm1=legal[start],
        legal_t=legal[after],
    )


def rows_of(legal, seed=2):
    """Return sequences whose actions are legal."""
    rng = np.random.default_rng(seed)
    state = rng.integers(STATES, size=(SIZE, LENGTH))
    actions = [[rng.choice(np.flatnonzero(legal[one])) for one in row] for row in state]
    no = np.zeros((SIZE, LENGTH), bool)
    return Row(
        obs=np.eye(STATES, dtype=np.float32)[state],
        first=rng.random((SIZE, LENGTH)) < 0.15,
        action=np.array(actions, np.int32),
        reward=rng.normal(size=(SIZE, LENGTH)).astype(np.float32),
        terminated=rng.random((SIZE, LENGTH)) < 0.15,
        truncated=no,
        legal=legal[state],
    )


@cache
def program_of(names, values, sequences):
    """Return the compiled loss and gradient of a variant; they are compiled once a shape."""
    variant = dict(zip(names, values, strict=True))
    if sequences:
        loss_and_info = make_sequence_loss(
            network_of(variant["loss"]), LOSSES[variant["loss"]].load(),
            double=variant.get("double", False), sequences=Sequences(1, LENGTH - 2, 1),
            rescale=variant.get("rescale", False),
        )  # fmt: skip
    else:
        loss_and_info = make_transition_loss(
            network_of(variant["loss"]), loss=variant["loss"],
            double=variant.get("double", False), bootstrap=variant.get("bootstrap", "greedy"),
        )  # fmt: skip
    return quick_jit(jax.value_and_grad(loss_and_info, has_aux=True))


def result_of(variant, params, target, batch):
    """Return loss, priorities and mean Q, and the gradient."""
    compute = program_of(tuple(variant), tuple(variant.values()), isinstance(batch, Row))
    arguments = jax.tree.map(jnp.asarray, (target, batch, np.ones(SIZE, np.float32)))
    (loss, info), gradient = compute(jnp.asarray(params), jax.random.key(0), *arguments, HYPER)
    return (loss, info), np.asarray(gradient)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), one, other)


def only_legal(batch):
    """Return a batch for the network that has only the actions of ``ALWAYS``."""
    rank = np.cumsum(ALWAYS) - 1
    if isinstance(batch, Row):
        return batch._replace(action=rank[batch.action].astype(np.int32), legal=())
    return batch._replace(a_tm1=rank[batch.a_tm1].astype(np.int32), legal_tm1=(), legal_t=())


SEQUENCES = {
    "dqn": {"loss": "huber"},
    "double rescaled": {"loss": "huber", "double": True, "rescale": True},
    "quantile": {"loss": "quantile"},
}
CASES = [
    *(pytest.param(variant, batch_of, id=name) for name, variant in VARIANTS.items()),
    *(pytest.param(variant, rows_of, id=f"r2d2 {name}") for name, variant in SEQUENCES.items()),
]


@pytest.mark.parametrize(("variant", "make"), CASES)
def test_illegal_actions_are_as_if_the_network_did_not_have_them(variant, make):
    batch = make(np.tile(ALWAYS, (STATES, 1)))
    params, target = tables(variant["loss"])
    expected, wanted = result_of(variant, params[:, ALWAYS], target[:, ALWAYS], only_legal(batch))
    for table in (params, target):
        table[:, ~ALWAYS] = HUGE * (1 + np.arange(table.shape[2]))  # for atoms: of the last one
    found, gradient = result_of(variant, params, target, batch)
    assert_close(found, expected)
    assert_close(gradient[:, ALWAYS], wanted)
    assert np.abs(wanted).max() > 0
    np.testing.assert_array_equal(gradient[:, ~ALWAYS], 0)
    # Without the masks their values do count.
    blank = {name: () for name in ("legal", "legal_tm1", "legal_t") if hasattr(batch, name)}
    unmasked, _ = result_of(variant, params, target, batch._replace(**blank))
    assert not np.allclose(unmasked[0], expected[0], rtol=1e-3)


@pytest.mark.parametrize(("variant", "make"), CASES)
def test_values_of_illegal_actions_change_nothing_where_masks_differ(variant, make):
    rng = np.random.default_rng(3)
    legal = rng.random((STATES, ACTIONS)) < 0.5
    legal[np.arange(STATES), [0, 1, 2, 4]] = True
    batch = make(legal)
    results = []
    for value in (-7.0, HUGE):
        params, target = tables(variant["loss"])
        params[~legal] = target[~legal] = value * (1 + np.arange(params.shape[2]))
        results.append(result_of(variant, params, target, batch))
    jax.tree.map(np.testing.assert_array_equal, *results)
    np.testing.assert_array_equal(results[0][1][~legal], 0)


@pytest.mark.parametrize(("variant", "make"), CASES)
def test_masks_without_illegal_actions_change_nothing(variant, make):
    batch = make(np.ones((STATES, ACTIONS), bool))
    params, target = tables(variant["loss"])
    names = [name for name in ("legal", "legal_tm1", "legal_t") if hasattr(batch, name)]
    unmasked = batch._replace(**dict.fromkeys(names, ()))
    assert_close(*(result_of(variant, params, target, each) for each in (batch, unmasked)))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_terminal_state_has_no_legal_action_and_no_value(variant):
    batch = batch_of(np.tile(ALWAYS, (STATES, 1)))
    ends = batch.discount_t == 0
    assert 0 < ends.sum() < SIZE
    params, target = tables(variant["loss"])
    expected = result_of(variant, params, target, batch)
    batch = batch._replace(legal_t=batch.legal_t & ~ends[:, None])
    found = result_of(variant, params, target, batch)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_batch_without_masks_is_rejected_where_they_are_needed():
    batch = jax.tree.map(jnp.asarray, batch_of(np.ones((STATES, ACTIONS), bool)))
    agent = make_agent(network_of("huber"), lambda hyper: None, masked=True)
    with pytest.raises(ValueError, match="legal_t: must be in the batches of your replay"):
        agent.learn(
            jax.random.key(0), None, batch._replace(legal_t=()), jnp.ones(SIZE), hyper=HYPER
        )
