"""The members of the DQN family: how their parts fit together, and that each of them runs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.config import loss_registry
from jaxdqn.config.presets import ABLATIONS, ALGORITHMS, TASKS, for_task, preset
from jaxdqn.losses import q_target, td_error
from jaxdqn.networks import NoisyDense, make_network
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Batch, EnvSpec, Exploration
from tests.agent.test_agent import ACTIONS, BATCH, OBS, random_batch
from tests.toys import noisy, quick_jit, tiny, watched_run

SPEC = EnvSpec("toy", (OBS,), np.dtype("float32"), ACTIONS, None)

OTHERS = ("pqn", "fast", *ABLATIONS)
MEMBERS = {name: ALGORITHMS[name] for name in ALGORITHMS if name not in OTHERS} | {
    "munchausen-iqn": {"bootstrap": "munchausen", "loss": "implicit_quantile"},
    "soft-qr-dqn": {"bootstrap": "soft", "loss": "quantile"},
    "rainbow-iqn": {**ALGORITHMS["rainbow"], "loss": "implicit_quantile"},
    "layer-norm": {"layer_norm": True, "noisy": True, "dueling": True, "hidden_sizes": (16, 8)},
}
"""Of plain DQN; PQN has tests of its own."""


def config_of(member):
    # A sequence needs as many rows of each environment before the first is learned from.
    rows = {"warmup_rows": 128} if "recurrent" in MEMBERS[member] else {}
    return tiny(**MEMBERS[member], **rows)


def agent_of(config):
    network = make_network(config, SPEC)
    return network, make_agent(
        network,
        make_optimizer(config),
        double=config.double,
        loss=config.loss,
        bootstrap=config.bootstrap,
    )


QUICK = ("rainbow",)


@pytest.mark.parametrize(
    "member",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in MEMBERS],
)
def test_every_member_runs_and_learns_from_what_it_does(member):
    config = config_of(member)
    start, end, metrics, _ = watched_run(make_trainer(config, environment=noisy()), 20)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(end.agent.params))
    assert int(metrics.skipped.sum()) == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.agent.params, end.agent.params)
    assert all(jax.tree.leaves(moved)), "parameters that nothing trains"


@pytest.mark.parametrize("member", MEMBERS)
def test_greedy_acting_is_the_largest_value_and_draws_nothing(member):
    network, agent = agent_of(config_of(member))
    obs, first = random_batch().obs_tm1, jnp.zeros(BATCH, bool)
    params = network.init(jax.random.key(0), obs)
    act = quick_jit(
        lambda key: agent.act(key, params, agent.initial_carry(BATCH), obs, first, None)
    )
    actions, _, info = act(jax.random.key(1))
    np.testing.assert_array_equal(actions, np.argmax(info.q, axis=1))
    np.testing.assert_array_equal(info.behaviour_prob, np.ones(BATCH))
    np.testing.assert_array_equal(act(jax.random.key(2))[2].q, info.q)


def noisy_agent(**fields):
    return agent_of(tiny(noisy=True, **fields))


def test_environments_act_with_noise_of_their_own_and_a_batch_learns_with_one():
    network, agent = noisy_agent()
    obs = jnp.broadcast_to(random_batch().obs_tm1[:1], (BATCH, OBS))
    first, params = jnp.zeros(BATCH, bool), network.init(jax.random.key(0), obs)
    explore = Exploration(jnp.zeros(BATCH), jnp.float32(1))
    _, _, info = agent.act(jax.random.key(1), params, (), obs, first, explore)
    assert len(np.unique(np.asarray(info.q)[:, 0])) == BATCH
    together = network.apply(params, jax.random.key(1), (), obs, first)[0].q_values
    np.testing.assert_allclose(together, np.broadcast_to(together[:1], together.shape), rtol=1e-6)
    again = network.apply(params, jax.random.key(2), (), obs, first)[0].q_values
    assert (np.abs(again - together) > 1e-6).all()


def test_with_munchausen_the_reward_has_the_bonus_of_the_target_network():
    """Worked out in NumPy from what the two networks say."""
    config = tiny(bootstrap="munchausen", entropy_temperature=0.5, loss="squared")
    network, agent = agent_of(config)
    batch, hyper = random_batch(), hyper_from(config)
    state = agent.init(jax.random.key(0), batch.obs_tm1, hyper=hyper)
    state = state._replace(target_params=network.init(jax.random.key(1), batch.obs_tm1))
    _, info = quick_jit(agent.learn)(jax.random.key(2), state, batch, jnp.ones(BATCH), hyper=hyper)

    def values(params, obs):
        return np.asarray(network.apply(params, None, (), obs, None)[0].q_values, np.float64)

    def log_policy(q):
        shifted = q / 0.5 - (q / 0.5).max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    rows, actions = np.arange(BATCH), np.asarray(batch.a_tm1)
    then, now = values(state.target_params, batch.obs_tm1), values(state.params, batch.obs_tm1)
    bonus = 0.9 * np.clip(0.5 * log_policy(then)[rows, actions], -1, 0)
    next_q = values(state.target_params, batch.obs_t)
    logs = log_policy(next_q)
    soft = (np.exp(logs) * (next_q - 0.5 * logs)).sum(axis=1)
    target = np.asarray(batch.r_t) + bonus + np.asarray(batch.discount_t) * soft
    np.testing.assert_allclose(info.abs_td, np.abs(target - now[rows, actions]), rtol=2e-5)


@pytest.mark.parametrize("loss", [pytest.param("categorical", marks=pytest.mark.slow), "quantile"])
def test_double_lets_the_online_network_choose_the_distribution(loss):
    """One that always chooses action 0 makes the target action 0's, whatever the target says."""
    config = tiny(loss=loss, double=True)
    network, agent = agent_of(config)
    batch, hyper = random_batch(), hyper_from(config)
    state = agent.init(jax.random.key(0), batch.obs_tm1, hyper=hyper)
    other = network.init(jax.random.key(1), batch.obs_tm1)

    def choosing(action):
        def apply(params, key, carry, obs, first):
            output, carry = network.apply(params, key, carry, obs, first)
            online = params["params"]["mark"][0] > 0
            choice = (jnp.arange(ACTIONS) == action)[None, :]
            marked = jnp.where(online & choice, 1e6, output.q_values)
            return output._replace(q_values=marked), carry

        return network._replace(apply=lambda p, *rest: apply(p, *rest))

    def marked(params, mark):
        return {"params": {**params["params"], "mark": jnp.array([mark])}}

    tds = []
    for action in (0, 1):
        chosen = make_agent(choosing(action), make_optimizer(config), double=True, loss=loss)
        start = chosen.init(jax.random.key(0), batch.obs_tm1, hyper=hyper)._replace(
            params=marked(state.params, 1.0), target_params=marked(other, 0.0)
        )
        start = start._replace(opt_state=make_optimizer(config)(hyper).init(start.params))
        learn = quick_jit(lambda *args, learn=chosen.learn: learn(*args, hyper=hyper))
        tds.append(learn(jax.random.key(2), start, batch, jnp.ones(BATCH))[1])
    assert (np.abs(tds[0].abs_td - tds[1].abs_td)[np.asarray(batch.discount_t) > 0] > 0).all()
    terminal = np.asarray(batch.discount_t) == 0
    np.testing.assert_allclose(tds[0].abs_td[terminal], tds[1].abs_td[terminal], rtol=1e-6)


def quartic(example, hyper):
    """A loss of the user's own, as CONTRIBUTING has it."""
    td = td_error(example.online_tm1.q_values, example.a_tm1, q_target(example))
    return 0.25 * td**4, jnp.abs(td)


def test_a_new_loss_is_one_function_and_one_line():
    jaxdqn.register_loss("quartic", quartic)
    try:
        _, _, metrics, _ = watched_run(make_trainer(tiny(loss="quartic"), environment=noisy()), 5)
        assert np.isfinite(metrics.loss).all()
        with pytest.raises(ValueError, match="name='quartic': must be"):
            jaxdqn.register_loss("quartic", quartic)
    finally:
        del loss_registry.LOSSES["quartic"]
    with pytest.raises(ValueError, match="loss='quartic': must be one of huber"):
        tiny(loss="quartic")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bootstrap": "soft", "double": True}, "double=True: must be False"),
        ({"bootstrap": "munchausen", "n_step": 3}, "n_step=3: must be 1 with"),
        ({"bootstrap": "munchausen", "loss": "categorical"}, "loss='categorical': must be"),
        ({"atoms": 21}, "atoms=21: must be 51 unless loss='categorical'"),
        ({"loss": "categorical", "value_max": -20.0}, "value_max=-20.0: must be above"),
        ({"loss": "categorical", "atoms": 1}, "atoms=1: must be at least 2"),
        ({"noisy_sigma": 0.1}, "noisy_sigma=0.1: must be 0.5 unless noisy=True"),
        ({"quantiles": 8}, "quantiles=8: must be 32 unless loss='quantile' or"),
        ({"munchausen_clip": 1.0, "bootstrap": "munchausen"}, "munchausen_clip=1.0: must be at"),
        ({"entropy_temperature": 1.0}, "entropy_temperature=1.0: must be 0.03 unless"),
        ({"loss": "hubr"}, "loss='hubr': must be one of huber"),
    ],
)  # fmt: skip
def test_what_does_nothing_or_contradicts_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2)(obs)


@pytest.mark.parametrize(("loss", "kind"), [("categorical", "Atoms"), ("quantile", "Quantiles")])
def test_a_module_without_a_distribution_is_refused_by_a_loss_that_needs_one(loss, kind):
    with pytest.raises(ValueError, match=f"network: must give a QOutput.* is {kind}"):
        make_trainer(tiny(loss=loss), environment=noisy(), network=Plain())


@pytest.mark.parametrize(
    "fields", [{"dueling": True}, {"layer_norm": True}, {"recurrent": "gru", "warmup_rows": 128}]
)
def test_options_of_our_networks_are_refused_with_one_of_your_own(fields):
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"^{name}=.*: must be .* with a custom network"):
        make_trainer(tiny(**fields), environment=noisy(), network=Plain())


def test_a_network_with_a_carry_of_its_own_is_refused():
    network = make_network(tiny(), noisy().spec)
    carried = network._replace(initial_carry=lambda size: jnp.zeros((size, 3)))
    with pytest.raises(ValueError, match=r"^network: must have an empty carry"):
        make_trainer(tiny(), environment=noisy(), network=carried)


class Shaken(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return NoisyDense(2)(obs)


def test_a_module_of_your_own_is_given_the_noise_that_it_draws():
    trainer = make_trainer(tiny(noisy=True), environment=noisy(), network=Shaken())
    obs, first = jnp.ones((4, 2)), jnp.zeros(4, bool)
    explore = Exploration(jnp.zeros(4), jnp.float32(1))
    params = Shaken().init(jax.random.key(0), obs)
    info = trainer.agent.act(jax.random.key(1), params, (), obs, first, explore)[2]
    assert len(np.unique(np.asarray(info.q)[:, 0])) == 4


@pytest.mark.parametrize(
    ("name", "fields"),
    {
        "double": {"double"},
        "dueling": {"dueling"},
        "n-step": {"n_step"},
        "per": {"replay"},
        "c51": {"loss", "value_min", "value_max"},
        "noisy": {"noisy", "epsilon_schedule", "epsilon_end"},
    }.items(),
)
@pytest.mark.parametrize("env", ["CartPole-v1", "Asterix-MinAtar"])
def test_rainbow_without_a_part_is_plain_in_that_part_alone(name, fields, env):
    whole, without, plain = (
        preset(name, env=env) for name in ("rainbow", f"rainbow-no-{name}", "dqn")
    )
    names = [field.name for field in dataclasses.fields(whole)]
    changed = {name for name in names if getattr(whole, name) != getattr(without, name)}
    assert changed == fields
    assert all(getattr(without, name) == getattr(plain, name) for name in fields)


def test_presets_of_algorithms_take_the_settings_of_the_environments_task():
    assert preset("rainbow").env == "CartPole-v1"
    there = preset("rainbow", env="Asterix-MinAtar")
    assert there.env == "Asterix-MinAtar"
    assert there.target_period == TASKS["breakout"].target_period
    assert (there.value_min, there.value_max) == (0.0, 30.0)
    assert preset("dqn", env="Breakout-MinAtar") == dataclasses.replace(
        TASKS["breakout"], double=False, n_step=1
    )
    assert for_task("dqn", "FourRooms-misc").learning_rate == 1e-3
    with pytest.raises(ValueError, match="algorithm='rainbw': must be one of rainbow"):
        for_task("rainbw", "CartPole-v1")


OUTCOMES = (0.0, 0.5, 1.0, 1.5)
"""Returns of two coin tosses, the second for half as much: each is as likely as the others."""


def toss(key, size):
    """Return transitions of a process: a coin's 0 or 1 in state 0, then in state 1, then none."""
    later = jnp.arange(size) % 2 == 1
    state = jnp.where(later[:, None], jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]]))
    return Batch(
        obs_tm1=state,
        a_tm1=jnp.zeros(size, jnp.int32),
        r_t=jax.random.bernoulli(key, 0.5, (size,)).astype(jnp.float32),
        discount_t=jnp.where(later, 0.0, 0.5),
        obs_t=jnp.broadcast_to(jnp.array([[0.0, 1.0]]), state.shape),
    )


@pytest.mark.parametrize(
    ("loss", "fields"),
    [
        ("categorical", {"atoms": 4, "value_min": 0.0, "value_max": 1.5}),
        ("quantile", {"quantiles": 8, "huber_delta": 0.02}),
        pytest.param(
            "implicit_quantile",
            {"quantiles": 8, "huber_delta": 0.02, "hidden_sizes": (32,)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_distribution_of_returns_is_learned_where_it_is_known(loss, fields):
    config = tiny(loss=loss, learning_rate=3e-3, **fields)
    network = make_network(config, SPEC._replace(obs_shape=(2,), num_actions=1))
    agent = make_agent(network, make_optimizer(config), loss=loss, target_period=20)
    hyper = hyper_from(config)

    @jax.jit
    def learn(key):
        state = agent.init(key, jnp.zeros((1, 2)), hyper=hyper)

        def step(state, key):
            key_batch, key_learn = jax.random.split(key)
            batch = toss(key_batch, 256)
            return agent.learn(key_learn, state, batch, jnp.ones(256), hyper=hyper)[0], None

        return jax.lax.scan(step, state, jax.random.split(key, 1500))[0].params

    params = learn(jax.random.key(0))
    output, _ = network.apply(params, None, (), jnp.array([[1.0, 0.0]]), jnp.zeros(1, bool))
    if loss == "categorical":
        shares = jax.nn.softmax(output.distribution.logits[0, 0])
        np.testing.assert_allclose(shares, np.full(4, 0.25), atol=0.03)
    else:
        quantiles = np.sort(np.asarray(output.distribution.values[0, 0]))
        np.testing.assert_allclose(quantiles, np.repeat(OUTCOMES, 2), atol=0.15)
    np.testing.assert_allclose(output.q_values, 0.75, atol=0.05)
