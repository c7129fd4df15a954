"""Targets with importance ratios against a NumPy twin that rolls each return out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.agent.retrace import retrace_targets
from jaxdqn.agent.transition_loss import make_transition_loss
from jaxdqn.losses import ILLEGAL
from jaxdqn.networks import make_network
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Batch, Network, Path, QOutput
from tests.toys import noisy, quick_jit, tiny

SIZE, STEPS, ACTIONS, STATES = 64, 4, 5, 6
GAMMA = 0.9
CONFIG = tiny()


def random_path(rng, *, masked=False):
    """Return a path, and Q of the evaluator and of the selector, [SIZE, STEPS, ACTIONS]."""
    length = rng.integers(1, STEPS + 1, SIZE)
    included = np.arange(STEPS) < length[:, None]
    terminated = (np.arange(STEPS) == length[:, None] - 1) & (rng.random((SIZE, 1)) < 0.5)
    values, selector = rng.normal(size=(2, SIZE, STEPS, ACTIONS))
    legal = rng.random((SIZE, STEPS, ACTIONS)) < 0.6
    legal[..., 2] = True
    actions = rng.integers(0, ACTIONS, (SIZE, STEPS))
    if masked:
        actions = np.where(np.take_along_axis(legal, actions[..., None], -1)[..., 0], actions, 2)
        values, selector = np.where(legal, values, ILLEGAL), np.where(legal, selector, ILLEGAL)
    path = Path(
        r_t=rng.normal(size=(SIZE, STEPS)).astype(np.float32),
        discount_t=np.where(terminated, 0, GAMMA).astype(np.float32),
        included=included,
        obs_t=(),
        a_t=actions.astype(np.int32),
        behaviour_prob_t=rng.uniform(0.05, 1, (SIZE, STEPS)).astype(np.float32),
        legal_t=legal if masked else (),
    )
    return path, values.astype(np.float32), selector.astype(np.float32)


def twin(path, values, selector, epsilon):
    """Return the sum over steps of discount, product of ratios and TD error (Munos et al. 2016,
    eq. 3), for each return."""
    targets = []
    for b in range(SIZE):
        target, weight, before = 0.0, 1.0, 0.0
        for j in range(int(path.included[b].sum())):
            q, chooses = values[b, j].astype(float), selector[b, j]
            legal = path.legal_t[b, j] if len(path.legal_t) else np.ones(ACTIONS, bool)
            policy = epsilon * legal / legal.sum()
            policy[np.argmax(chooses)] += 1 - epsilon
            value = float(policy[legal] @ q[legal])
            target += weight * (path.r_t[b, j] + path.discount_t[b, j] * value - before)
            action = path.a_t[b, j]
            weight *= path.discount_t[b, j] * min(1, policy[action] / path.behaviour_prob_t[b, j])
            before = q[action]
        targets.append(target)
    return np.array(targets)


compute = quick_jit(retrace_targets, static_argnums=3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_targets_equal_the_sum_of_corrected_errors(masked, epsilon):
    path, values, selector = random_path(np.random.default_rng(0), masked=masked)
    targets = compute(path, values, selector, epsilon)
    np.testing.assert_allclose(targets, twin(path, values, selector, epsilon), atol=1e-5)


def test_the_stored_probability_enters_the_target():
    path, values, selector = random_path(np.random.default_rng(1))
    rarely = path._replace(behaviour_prob_t=np.full((SIZE, STEPS), 0.06, np.float32))
    often = path._replace(behaviour_prob_t=np.full((SIZE, STEPS), 0.9, np.float32))
    targets = [compute(each, values, selector, 0.3) for each in (rarely, often)]
    several = path.included.sum(axis=1) > 1
    assert (np.abs(targets[0] - targets[1])[several] > 1e-4).all()
    np.testing.assert_allclose(targets[0][~several], targets[1][~several], rtol=1e-6)


def test_the_return_of_greedy_actions_is_the_n_step_return():
    path, values, _ = random_path(np.random.default_rng(2))
    path = path._replace(a_t=np.argmax(values, axis=-1).astype(np.int32))
    expected = []
    for b in range(SIZE):
        steps = int(path.included[b].sum())
        powers = GAMMA ** np.arange(steps)
        bootstrap = np.prod(path.discount_t[b, :steps]) * values[b, steps - 1].max()
        expected.append(powers @ path.r_t[b, :steps] + bootstrap)
    np.testing.assert_allclose(compute(path, values, values, 0.0), expected, atol=1e-5)


def test_a_greedy_target_ends_at_the_first_other_action():
    path, values, _ = random_path(np.random.default_rng(3))
    path = path._replace(
        a_t=np.argmin(values, axis=-1).astype(np.int32),
        behaviour_prob_t=np.full((SIZE, STEPS), 0.5, np.float32),
    )
    expected = path.r_t[:, 0] + path.discount_t[:, 0] * values[:, 0].max(axis=-1)
    np.testing.assert_allclose(compute(path, values, values, 0.0), expected, atol=1e-6)


def test_what_stands_past_the_end_of_a_return_is_not_read():
    path, values, selector = random_path(np.random.default_rng(4))
    past = ~path.included
    last = path.included & ~np.roll(path.included, -1, axis=1)
    last[:, -1] |= path.included[:, -1]
    garbage = path._replace(
        r_t=np.where(past, np.nan, path.r_t),
        behaviour_prob_t=np.where(past | last, np.nan, path.behaviour_prob_t),
        a_t=np.where(past | last, 0, path.a_t),
    )
    broken = np.where(past[..., None], np.nan, values)
    np.testing.assert_array_equal(
        compute(garbage, broken, selector, 0.3), compute(path, values, selector, 0.3)
    )


@pytest.mark.parametrize("double", [False, True])
def test_the_target_network_evaluates_and_with_double_the_online_network_chooses(double):
    rng = np.random.default_rng(6)
    path, _, _ = random_path(rng)
    online, target = rng.normal(size=(2, STATES, ACTIONS)).astype(np.float32)
    states = rng.integers(STATES, size=(SIZE, STEPS))
    start, action = rng.integers(STATES, size=SIZE), rng.integers(ACTIONS, size=SIZE)
    one_hot = np.eye(STATES, dtype=np.float32)
    batch = Batch(
        obs_tm1=one_hot[start],
        a_tm1=action.astype(np.int32),
        r_t=np.full(SIZE, np.nan, np.float32),
        discount_t=np.full(SIZE, np.nan, np.float32),
        obs_t=(),
        path=path._replace(obs_t=one_hot[states]),
    )
    network = Network(
        init=None,
        apply=lambda params, key, carry, obs, first: (QOutput(obs @ params), carry),
        initial_carry=lambda size: (),
    )
    loss_and_info = make_transition_loss(
        network, double=double, loss="squared", bootstrap="greedy", target_epsilon=0.3
    )
    key, weights = jax.random.key(0), np.ones(SIZE, np.float32)
    hyper = hyper_from(tiny())
    abs_td = quick_jit(loss_and_info)(online, key, target, batch, weights, hyper)[1][0]
    selector = online if double else target
    targets = twin(path, target[states], selector[states], 0.3)
    np.testing.assert_allclose(abs_td, np.abs(targets - online[start, action]), atol=1e-5)


def test_a_batch_without_a_path_is_rejected():
    agent = make_agent(
        make_network(CONFIG, noisy().spec), make_optimizer(CONFIG), target_epsilon=0.0
    )
    hyper, obs = hyper_from(CONFIG), jnp.zeros((4, *noisy().spec.obs_shape))
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), obs, hyper=hyper))
    batch = Batch(obs, jnp.zeros(4, jnp.int32), jnp.zeros(4), jnp.zeros(4), obs)
    with pytest.raises(ValueError, match="path: must be in the batches of your replay"):
        jax.eval_shape(
            lambda state: agent.learn(jax.random.key(0), state, batch, jnp.ones(4), hyper=hyper),
            state,
        )


@pytest.mark.parametrize("values", [{"loss": "categorical"}, {"bootstrap": "soft"}])
def test_an_agent_rejects_ratios_for_other_targets(values):
    with pytest.raises(ValueError, match=r"target_epsilon=0\.0: must be None unless"):
        make_agent(None, None, target_epsilon=0.0, **values)


def test_the_target_has_the_dtype_of_losses():
    path, values, selector = random_path(np.random.default_rng(5))
    assert compute(path, values, selector, 0.3).dtype == jnp.float32
