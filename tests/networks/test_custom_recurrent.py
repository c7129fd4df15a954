"""Custom recurrent networks."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxdqn.networks import make_network
from jaxdqn.training.trainer import make_trainer
from tests.toys import assert_identical, noisy, tiny, watched_run

FIELDS = {"sequence_length": 4, "burn_in": 1, "warmup_rows": 64}
CUSTOM = tiny(recurrent="custom", **FIELDS)


class Memory(nn.Module):
    """The carry is a running sum of the observations."""

    @nn.compact
    def __call__(self, carry, obs, first):
        carry = jnp.where(first[:, None], 0.0, carry) + obs
        return carry, nn.Dense(2)(carry)

    def initial_carry(self, batch_size):
        return jnp.zeros((batch_size, 2))


@pytest.mark.slow  # compiles two recurrent steps
def test_a_custom_network_trains_as_the_built_in_one_that_it_equals():
    config = tiny(recurrent="gru", recurrent_size=4, **FIELDS)
    network = make_network(config, noisy().spec)
    built_in = watched_run(make_trainer(config, environment=noisy()), 2)
    custom = watched_run(make_trainer(CUSTOM, environment=noisy(), network=network), 2)
    assert_identical(custom[:3], built_in[:3])


def test_a_recurrent_flax_module_carries_its_state_through_an_episode():
    trainer = make_trainer(CUSTOM, environment=noisy(), network=Memory())
    start, end, metrics, (carry, obs, first) = watched_run(
        trainer,
        6,
        lambda state: (state.actor.carry, state.actor.timestep.obs, state.actor.timestep.first),
    )
    total = start.actor.carry
    obs = [start.actor.timestep.obs, *obs]
    first = [start.actor.timestep.first, *first]
    for step in range(6):
        total = jnp.where(first[step][:, None], 0.0, total) + obs[step]
        assert (carry[step] == total).all()
    before, after = (state.agent.params["params"]["Dense_0"]["kernel"] for state in (start, end))
    assert (before != after).all()
    assert jnp.isfinite(metrics.loss).all()


class Stateless(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2)(obs)


class Growing(Memory):
    @nn.compact
    def __call__(self, carry, obs, first):
        return jnp.concatenate([carry, obs], axis=1), nn.Dense(2)(obs)


@pytest.mark.parametrize(
    ("config", "network", "message"),
    [
        (CUSTOM, None, "network=None: must be given with recurrent='custom'"),
        (CUSTOM, Stateless(), "network=Stateless: must have initial_carry(batch_size)"),
        (
            CUSTOM,
            make_network(tiny(), noisy().spec),
            "network: must have an empty carry, or a carry with recurrent='custom'",
        ),
        (CUSTOM, Growing(), "network: must return a carry as initial_carry does, ((2, 2), 'float"),
        (
            tiny(),
            make_network(tiny(recurrent="gru", **FIELDS), noisy().spec),
            "network: must have an empty carry, or a carry with recurrent='custom'",
        ),
    ],
)
def test_networks_that_do_not_fit_are_rejected(config, network, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(config, environment=noisy(), network=network)


def test_the_width_of_a_cell_has_no_effect_on_a_custom_network():
    with pytest.raises(ValueError, match=r"recurrent_size=4: must be 128 unless recurrent='lstm'"):
        tiny(recurrent="custom", recurrent_size=4, **FIELDS)


def test_make_network_takes_the_key_of_parameters():
    network = make_network(CUSTOM, noisy().spec, Memory())
    params = network.init(jax.random.key(0), jnp.ones((3, 2)))
    output, carry = network.apply(params, None, network.initial_carry(3), jnp.ones((3, 2)),
                                  jnp.ones(3, bool))  # fmt: skip
    assert (output.q_values.shape, carry.shape) == ((3, 2), (3, 2))
