"""Acting and learning of the agent, against a linear network computed in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxdqn.agent.agent import make_agent
from jaxdqn.networks import from_module
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Batch, Exploration
from tests.toys import quick_jit, tiny

OBS, ACTIONS, BATCH = 5, 3, 12
LEARNING_RATE, DELTA, TAU = 0.1, 2.0, 0.25


class Linear(nn.Module):
    """Custom flax module: ``q = obs @ W + b``."""

    @nn.compact
    def __call__(self, obs):
        weight = self.param("weight", nn.initializers.normal(1.0), (OBS, ACTIONS))
        bias = self.param("bias", nn.initializers.normal(1.0), (ACTIONS,))
        return obs @ weight + bias[None, :]


def sgd(hyper):
    """Custom optimiser."""
    return optax.sgd(hyper.learning_rate)


HYPER = hyper_from(tiny(learning_rate=LEARNING_RATE, huber_delta=DELTA, target_tau=TAU))


def agent_of(**options):
    return make_agent(from_module(Linear()), sgd, **options)


def random_batch(seed=0, size=BATCH):
    rng = np.random.default_rng(seed)
    batch = Batch(
        obs_tm1=rng.normal(size=(size, OBS)).astype(np.float32),
        a_tm1=rng.integers(ACTIONS, size=size, dtype=np.int32),
        r_t=rng.normal(size=size).astype(np.float32),
        discount_t=np.where(rng.random(size) < 0.3, 0, 0.9).astype(np.float32),
        obs_t=rng.normal(size=(size, OBS)).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, batch)


def initial_state(agent):
    """Return an agent state whose target parameters differ from the online parameters."""
    state = agent.init(jax.random.key(0), jnp.zeros((1, OBS)), hyper=HYPER)
    other = agent.init(jax.random.key(1), jnp.zeros((1, OBS)), hyper=HYPER)
    return state._replace(target_params=other.params)


def q_twin(params, obs):
    params = params["params"]
    weight, bias = np.asarray(params["weight"], np.float64), np.asarray(params["bias"], np.float64)
    return np.asarray(obs, np.float64) @ weight + bias


def learn_twin(state, batch, weights, *, double, loss):
    """Take one step of SGD, example by example; return weight, bias, loss, |td|, |grad|, mean q."""
    q_tm1, q_t = q_twin(state.params, batch.obs_tm1), q_twin(state.target_params, batch.obs_t)
    selector = q_twin(state.params, batch.obs_t) if double else q_t
    grad_weight, grad_bias = np.zeros((OBS, ACTIONS)), np.zeros(ACTIONS)
    tds, losses = [], []
    for i in range(len(weights)):
        action = int(batch.a_tm1[i])
        best = np.argmax(selector[i])
        target = float(batch.r_t[i]) + float(batch.discount_t[i]) * q_t[i, best]
        td = target - q_tm1[i, action]
        slope = td if loss == "squared" else np.clip(td, -DELTA, DELTA)
        small = loss == "squared" or abs(td) <= DELTA
        losses.append(0.5 * td**2 if small else DELTA * (abs(td) - 0.5 * DELTA))
        tds.append(td)
        step = -slope * float(weights[i]) / len(weights)
        grad_weight[:, action] += step * np.asarray(batch.obs_tm1[i], np.float64)
        grad_bias[action] += step
    old = state.params["params"]
    return (
        old["weight"] - LEARNING_RATE * grad_weight,
        old["bias"] - LEARNING_RATE * grad_bias,
        np.mean(np.asarray(weights, np.float64) * losses),
        np.abs(tds),
        np.sqrt((grad_weight**2).sum() + (grad_bias**2).sum()),
        np.mean([q_tm1[i, int(batch.a_tm1[i])] for i in range(len(weights))]),
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_gradient_step_of_a_linear_network_equals_the_numpy_twin(double, loss, weighted):
    agent = agent_of(double=double, loss=loss)
    state, batch = initial_state(agent), random_batch()
    weights = jnp.linspace(0.0, 1.0, BATCH) if weighted else jnp.ones(BATCH)
    after, info = quick_jit(agent.learn)(jax.random.key(2), state, batch, weights, hyper=HYPER)
    weight, bias, value, abs_td, norm, q_mean = learn_twin(
        state, batch, weights, double=double, loss=loss
    )
    assert (abs_td > DELTA).any()
    assert (abs_td < DELTA).any()
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(after.params["params"]["weight"], weight, **close)
    np.testing.assert_allclose(after.params["params"]["bias"], bias, **close)
    np.testing.assert_allclose(info.loss, value, **close)
    np.testing.assert_allclose(info.abs_td, abs_td, **close)
    np.testing.assert_allclose(info.grad_norm, norm, **close)
    np.testing.assert_allclose(info.q_mean, q_mean, **close)
    assert not np.allclose(after.params["params"]["weight"], state.params["params"]["weight"])


def test_double_and_single_targets_differ_on_this_batch():
    """Otherwise the test above would not test ``double``."""
    state, batch, weights = initial_state(agent_of()), random_batch(), np.ones(BATCH)
    single = learn_twin(state, batch, weights, double=False, loss="huber")
    double = learn_twin(state, batch, weights, double=True, loss="huber")
    assert np.abs(single[0] - double[0]).max() > 1e-3


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_minibatches_equal_one_batch_of_the_same_rows(parts):
    batch, weights = random_batch(), jnp.linspace(0.1, 1.0, BATCH)
    key, outcomes = jax.random.key(2), []
    for accumulate in (1, parts):
        agent = agent_of(accumulate=accumulate)
        outcomes.append(
            quick_jit(agent.learn)(key, initial_state(agent), batch, weights, hyper=HYPER)
        )
    (single, single_info), (accumulated, info) = outcomes
    assert info.abs_td.shape == (BATCH,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        (accumulated, info),
        (single, single_info),
    )


@pytest.mark.parametrize("period", [1, 3, 7])
def test_the_target_is_the_online_network_at_the_last_multiple_of_the_period(period):
    agent = agent_of(target_period=period)
    learn = quick_jit(agent.learn)
    state = initial_state(agent)
    target = state.target_params
    for step in range(1, 16):
        state, _ = learn(
            jax.random.key(step), state, random_batch(step), jnp.ones(BATCH), hyper=HYPER
        )
        if step % period == 0:
            target = state.params
        jax.tree.map(np.testing.assert_array_equal, state.target_params, target)
        assert int(state.since_target) == step % period


def test_polyak_moves_the_target_by_tau_at_every_step():
    agent = agent_of(polyak=True, target_period=1)
    learn = quick_jit(agent.learn)
    state = initial_state(agent)
    for step in range(4):
        before = state.target_params
        state, _ = learn(
            jax.random.key(step), state, random_batch(step), jnp.ones(BATCH), hyper=HYPER
        )
        jax.tree.map(
            lambda now, old, new: np.testing.assert_allclose(
                now, (1 - TAU) * np.asarray(old, np.float64) + TAU * new, atol=1e-6
            ),
            state.target_params,
            before,
            state.params,
        )


def test_the_initial_target_is_a_copy_of_the_online_network():
    agent = agent_of()
    state = agent.init(jax.random.key(0), jnp.zeros((1, OBS)), hyper=HYPER)
    pointers = set()
    for online, target in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(state.target_params), strict=True
    ):
        np.testing.assert_array_equal(online, target)
        pointers |= {online.unsafe_buffer_pointer(), target.unsafe_buffer_pointer()}
    assert len(pointers) == 4  # two leaves each, no buffer shared, so that the state can be donated


ENVS = 6000


@pytest.fixture(scope="module")
def actor():
    """Return ``act``, which acts in many environments with the same observation."""
    agents = {kind: agent_of(exploration=kind) for kind in ("epsilon_greedy", "boltzmann")}
    params = initial_state(agents["boltzmann"]).params
    obs = jnp.broadcast_to(jnp.linspace(-0.3, 0.4, OBS), (ENVS, OBS))

    def act(kind, epsilon, temperature=1.0, seed=0):
        exploration = Exploration(jnp.full(ENVS, epsilon), jnp.float32(temperature))
        agent = agents[kind]
        carry = agent.initial_carry(ENVS)
        first = jnp.zeros(ENVS, bool)
        actions, carry, info = quick_jit(agent.act)(
            jax.random.key(seed), params, carry, obs, first, exploration
        )
        assert carry == agent.initial_carry(ENVS)
        assert actions.dtype == jnp.int32
        np.testing.assert_allclose(info.q, q_twin(params, obs), rtol=1e-5, atol=1e-5)
        return np.asarray(actions), np.asarray(info.behaviour_prob), q_twin(params, obs[0])

    return act


def assert_drawn_from(actions, probabilities):
    counts = np.bincount(actions, minlength=ACTIONS)
    assert stats.chisquare(counts, np.asarray(probabilities) * ENVS).pvalue > 1e-4


def test_epsilon_1_is_uniform_and_independent_between_environments(actor):
    actions, prob, _ = actor("epsilon_greedy", 1.0)
    assert_drawn_from(actions, np.full(ACTIONS, 1 / ACTIONS))
    np.testing.assert_allclose(prob, 1 / ACTIONS, rtol=1e-6)
    others, _, _ = actor("epsilon_greedy", 1.0, seed=1)
    assert 0.5 < np.mean(actions != others) < 0.8  # two in three


def test_epsilon_0_is_greedy(actor):
    actions, prob, q = actor("epsilon_greedy", 0.0)
    assert (actions == np.argmax(q)).all()
    np.testing.assert_array_equal(prob, 1.0)


def test_epsilon_between_0_and_1_mixes_uniform_and_greedy(actor):
    actions, prob, q = actor("epsilon_greedy", 0.3)
    expected = np.full(ACTIONS, 0.1)
    expected[np.argmax(q)] += 0.7
    assert_drawn_from(actions, expected)
    np.testing.assert_allclose(prob, expected[actions], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_boltzmann_draws_from_the_softmax(actor, temperature):
    actions, prob, q = actor("boltzmann", 0.0, temperature)
    softmax = np.exp(q / temperature) / np.exp(q / temperature).sum()
    assert softmax.min() * ENVS > 5
    assert_drawn_from(actions, softmax)
    np.testing.assert_allclose(prob, softmax[actions], rtol=1e-4)


@pytest.mark.parametrize("name", ["accumulate", "target_period"])
def test_a_count_below_one_is_rejected(name):
    with pytest.raises(ValueError, match=f"^{name}=0: must be at least 1"):
        agent_of(**{name: 0})


@pytest.mark.parametrize("name", ["loss", "exploration"])
def test_an_unknown_choice_is_rejected(name):
    with pytest.raises(ValueError, match=f"^{name}='hubber': must be one of"):
        agent_of(**{name: "hubber"})
