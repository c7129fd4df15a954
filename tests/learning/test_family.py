"""Members of the DQN family: the composition of their parts, and a short run of each."""

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
from jaxdqn.config.algorithm_presets import ABLATIONS, ALGORITHMS
from jaxdqn.config.presets import for_task, preset
from jaxdqn.config.task_presets import TASKS
from jaxdqn.losses import q_target, td_error
from jaxdqn.networks import NoisyDense, make_network
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import EnvSpec, Exploration
from tests.agent.test_agent import ACTIONS, BATCH, OBS, random_batch
from tests.toys import noisy, quick_jit, tiny, watched_run

SPEC = EnvSpec("toy", (OBS,), np.dtype("float32"), ACTIONS, None)

OTHERS = ("pqn", "fast", *ABLATIONS)
MEMBERS = {name: ALGORITHMS[name] for name in ALGORITHMS if name not in OTHERS} | {
    "munchausen-iqn": {"bootstrap": "munchausen", "loss": "implicit_quantile"},
    "soft-qr-dqn": {"bootstrap": "soft", "loss": "quantile"},
    "rainbow-iqn": {**ALGORITHMS["rainbow"], "loss": "implicit_quantile"},
    "munchausen, 3 steps": {"bootstrap": "munchausen", "n_step": 3},
    "layer-norm": {"layer_norm": True, "noisy": True, "dueling": True, "hidden_sizes": (16, 8)},
}
"""Fields that differ from plain DQN. PQN has separate tests."""


def config_of(member):
    # Before the first gradient step each environment must have the rows of one sequence.
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


QUICK = ("c51",)


@pytest.mark.parametrize(
    "member",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in MEMBERS],
)
def test_every_member_runs_and_updates_all_its_parameters(member):
    config = config_of(member)
    start, end, metrics, _ = watched_run(make_trainer(config, environment=noisy()), 20)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(end.agent.params))
    assert int(metrics.skipped.sum()) == 0
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), start.agent.params, end.agent.params)
    assert all(jax.tree.leaves(changed)), "parameters without gradient"


@pytest.mark.parametrize("member", MEMBERS)
def test_greedy_acting_takes_the_largest_value_and_ignores_the_key(member):
    network, agent = agent_of(config_of(member))
    obs, first = random_batch().obs_tm1, jnp.zeros(BATCH, bool)
    params = quick_jit(network.init)(jax.random.key(0), obs)
    act = quick_jit(
        lambda key: agent.act(key, params, agent.initial_carry(BATCH), obs, first, None)
    )
    actions, _, info = act(jax.random.key(1))
    np.testing.assert_array_equal(actions, np.argmax(info.q, axis=1))
    np.testing.assert_array_equal(info.behaviour_prob, np.ones(BATCH))
    np.testing.assert_array_equal(act(jax.random.key(2))[2].q, info.q)


def noisy_agent(**fields):
    return agent_of(tiny(noisy=True, **fields))


def test_each_environment_acts_with_separate_noise_and_a_batch_shares_one():
    network, agent = noisy_agent()
    obs = jnp.broadcast_to(random_batch().obs_tm1[:1], (BATCH, OBS))
    first, params = jnp.zeros(BATCH, bool), quick_jit(network.init)(jax.random.key(0), obs)
    explore = Exploration(jnp.zeros(BATCH), jnp.float32(1))
    act = quick_jit(lambda key: agent.act(key, params, (), obs, first, explore))
    q_values = quick_jit(lambda key: network.apply(params, key, (), obs, first)[0].q_values)
    _, _, info = act(jax.random.key(1))
    assert len(np.unique(np.asarray(info.q)[:, 0])) == BATCH
    one_key = q_values(jax.random.key(1))
    np.testing.assert_allclose(one_key, np.broadcast_to(one_key[:1], one_key.shape), rtol=1e-6)
    other_key = q_values(jax.random.key(2))
    assert (np.abs(other_key - one_key) > 1e-6).all()


def test_munchausen_adds_the_bonus_of_the_target_network_to_the_reward():
    """Compare with the target computed in NumPy from the values of both networks."""
    config = tiny(bootstrap="munchausen", entropy_temperature=0.5, loss="squared")
    network, agent = agent_of(config)
    batch, hyper = random_batch(), hyper_from(config)
    state = quick_jit(agent.init)(jax.random.key(0), batch.obs_tm1, hyper=hyper)
    state = state._replace(target_params=quick_jit(network.init)(jax.random.key(1), batch.obs_tm1))
    _, info = quick_jit(agent.learn)(jax.random.key(2), state, batch, jnp.ones(BATCH), hyper=hyper)

    def values(params, obs):
        return np.asarray(network.apply(params, None, (), obs, None)[0].q_values, np.float64)

    def log_policy(q):
        shifted = q / 0.5 - (q / 0.5).max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    rows, actions = np.arange(BATCH), np.asarray(batch.a_tm1)
    target_q = values(state.target_params, batch.obs_tm1)
    online_q = values(state.params, batch.obs_tm1)
    bonus = 0.9 * np.clip(0.5 * log_policy(target_q)[rows, actions], -1, 0)
    next_q = values(state.target_params, batch.obs_t)
    logs = log_policy(next_q)
    soft = (np.exp(logs) * (next_q - 0.5 * logs)).sum(axis=1)
    target = np.asarray(batch.r_t) + bonus + np.asarray(batch.discount_t) * soft
    np.testing.assert_allclose(info.abs_td, np.abs(target - online_q[rows, actions]), rtol=2e-5)


@pytest.mark.parametrize("loss", [pytest.param("categorical", marks=pytest.mark.slow), "quantile"])
def test_double_selects_the_distribution_by_the_online_network(loss):
    """If the online network always selects one action, the target is that action's distribution."""
    config = tiny(loss=loss, double=True)
    network, agent = agent_of(config)
    batch, hyper = random_batch(), hyper_from(config)
    state = quick_jit(agent.init)(jax.random.key(0), batch.obs_tm1, hyper=hyper)
    other = quick_jit(network.init)(jax.random.key(1), batch.obs_tm1)

    def selecting(action):
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
        chosen = make_agent(selecting(action), make_optimizer(config), double=True, loss=loss)
        start = quick_jit(chosen.init)(jax.random.key(0), batch.obs_tm1, hyper=hyper)._replace(
            params=marked(state.params, 1.0), target_params=marked(other, 0.0)
        )
        start = start._replace(opt_state=make_optimizer(config)(hyper).init(start.params))
        learn = quick_jit(lambda *args, learn=chosen.learn: learn(*args, hyper=hyper))
        tds.append(learn(jax.random.key(2), start, batch, jnp.ones(BATCH))[1])
    assert (np.abs(tds[0].abs_td - tds[1].abs_td)[np.asarray(batch.discount_t) > 0] > 0).all()
    terminal = np.asarray(batch.discount_t) == 0
    np.testing.assert_allclose(tds[0].abs_td[terminal], tds[1].abs_td[terminal], rtol=1e-6)


def quartic(example, hyper):
    """Return the loss of a user, as in CONTRIBUTING."""
    td = td_error(example.online_tm1.q_values, example.a_tm1, q_target(example))
    return 0.25 * td**4, jnp.abs(td)


def test_a_new_loss_takes_one_function_and_one_registration():
    jaxdqn.register_loss("quartic", quartic)
    try:
        _, _, metrics, _ = watched_run(make_trainer(tiny(loss="quartic"), environment=noisy()), 5)
        assert np.isfinite(metrics.loss).all()
        with pytest.raises(ValueError, match="name='huber': must be an identifier and none of"):
            jaxdqn.register_loss("huber", quartic)
    finally:
        del loss_registry.LOSSES["quartic"]
    with pytest.raises(ValueError, match="loss='quartic': must be one of huber"):
        tiny(loss="quartic")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bootstrap": "soft", "double": True}, "double=True: must be False"),
        ({"bootstrap": "soft", "n_step": 3}, "n_step=3: must be 1 with"),
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
def test_fields_without_effect_or_in_conflict_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2)(obs)


@pytest.mark.parametrize(("loss", "kind"), [("categorical", "Atoms"), ("quantile", "Quantiles")])
def test_a_distributional_loss_rejects_a_module_without_a_distribution(loss, kind):
    with pytest.raises(ValueError, match=f"network: must give a QOutput.* is {kind}"):
        make_trainer(tiny(loss=loss), environment=noisy(), network=Plain())


@pytest.mark.parametrize(
    "fields", [{"dueling": True}, {"layer_norm": True}, {"recurrent": "gru", "warmup_rows": 128}]
)
def test_options_of_built_in_networks_are_rejected_with_a_custom_network(fields):
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"^{name}=.*: must be .* with a custom network"):
        make_trainer(tiny(**fields), environment=noisy(), network=Plain())


def test_a_custom_network_with_a_carry_is_rejected():
    network = make_network(tiny(), noisy().spec)
    carried = network._replace(initial_carry=lambda size: jnp.zeros((size, 3)))
    with pytest.raises(ValueError, match=r"^network: must have an empty carry"):
        make_trainer(tiny(), environment=noisy(), network=carried)


class NoisyModule(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return NoisyDense(2)(obs)


def test_a_custom_module_receives_keys_for_its_noise():
    trainer = make_trainer(tiny(noisy=True), environment=noisy(), network=NoisyModule())
    obs, first = jnp.ones((4, 2)), jnp.zeros(4, bool)
    explore = Exploration(jnp.zeros(4), jnp.float32(1))
    params = quick_jit(NoisyModule().init)(jax.random.key(0), obs)
    act = quick_jit(lambda key: trainer.agent.act(key, params, (), obs, first, explore))
    info = act(jax.random.key(1))[2]
    assert len(np.unique(np.asarray(info.q)[:, 0])) == 4


@pytest.mark.parametrize(
    ("name", "fields"),
    {
        "double": {"double"},
        "dueling": {"dueling"},
        "n-step": {"n_step"},
        "per": {"replay", "priority_exponent"},
        "c51": {"loss", "value_min", "value_max"},
        "noisy": {"noisy", "epsilon_schedule", "epsilon_end"},
    }.items(),
)
@pytest.mark.parametrize("env", ["CartPole-v1", "Asterix-MinAtar"])
def test_rainbow_without_a_part_differs_only_in_the_fields_of_that_part(name, fields, env):
    rainbow, without, plain = (
        preset(name, env=env) for name in ("rainbow", f"rainbow-no-{name}", "dqn")
    )
    names = [field.name for field in dataclasses.fields(rainbow)]
    changed = {name for name in names if getattr(rainbow, name) != getattr(without, name)}
    assert changed == fields
    assert all(getattr(without, name) == getattr(plain, name) for name in fields)


def test_algorithm_presets_take_the_settings_of_the_task_of_their_environment():
    assert preset("rainbow").env == "CartPole-v1"
    asterix = preset("rainbow", env="Asterix-MinAtar")
    assert asterix.env == "Asterix-MinAtar"
    assert asterix.target_period == TASKS["breakout"].target_period
    assert (asterix.value_min, asterix.value_max) == (0.0, 30.0)
    assert preset("dqn", env="Breakout-MinAtar") == dataclasses.replace(
        TASKS["breakout"], double=False, n_step=1
    )
    assert for_task("dqn", "FourRooms-misc").learning_rate == 1e-3
    with pytest.raises(
        ValueError, match="algorithm='rainbw': must be a known algorithm; nearest: rainbow"
    ):
        for_task("rainbw", "CartPole-v1")
