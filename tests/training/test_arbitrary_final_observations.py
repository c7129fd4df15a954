"""A final observation may be arbitrary: neither targets nor gradients depend on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs import make_environment
from jaxdqn.losses import bootstrapped, lambda_targets
from jaxdqn.networks import make_network
from jaxdqn.training.trainer import make_trainer
from tests.toys import quick_jit, tiny

PQN = {
    "algorithm": "pqn",
    "rollout_length": 8,
    "minibatches": 4,
    "replay_capacity": type(tiny()).replay_capacity,
    "warmup_rows": type(tiny()).warmup_rows,
    "batch_size": type(tiny()).batch_size,
}
VARIANTS = {
    "td": {"loss": "squared"},
    "huber, double, n-step": {"double": True, "n_step": 3},
    "categorical": {"loss": "categorical", "atoms": 5},
    "categorical, double, prioritised, noisy": {
        "loss": "categorical", "atoms": 5, "double": True, "replay": "prioritized", "noisy": True,
    },
    "quantile": {"loss": "quantile", "quantiles": 4},
    "implicit quantile": {"loss": "implicit_quantile", "quantiles": 4},
    "soft": {"bootstrap": "soft"},
    "munchausen": {"bootstrap": "munchausen"},
    "munchausen, quantile": {"bootstrap": "munchausen", "loss": "quantile", "quantiles": 4},
    "frame stack": {"frame_stack": 2},
    "pqn": PQN,
    "r2d2": {"recurrent": "lstm", "burn_in": 2, "sequence_length": 3, "replay_capacity": 256},
    "r2d2, gru, double, n-step, rescaled": {
        "recurrent": "gru", "burn_in": 0, "sequence_length": 3, "n_step": 2, "double": True,
        "rescale_values": True,
    },
}  # fmt: skip


def corridor(final):
    """Return an environment that terminates in state 3 with the observation ``final``."""

    def show(state):
        return jnp.where(state == 3, final, (jnp.arange(3) == state).astype(jnp.float32))

    def reset(key):
        return jnp.int32(0), show(jnp.int32(0))

    def step(key, state, action):
        state = state + 1 - jnp.where(state > 0, action, 0)
        return state, show(state), state.astype(jnp.float32), state == 3

    return make_environment(reset, step, name="corridor", num_actions=2, max_episode_steps=7)


FAST = (
    "td", "pqn",
)  # fmt: skip


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, variant in VARIANTS.items()
    ],
)
def test_nan_after_a_terminal_state_changes_no_parameter(variant):
    config = tiny(hidden_sizes=(8,), recurrent_size=8, **variant) if "recurrent" in variant else (
        tiny(hidden_sizes=(8,), **variant)
    )  # fmt: skip

    @quick_jit
    def trained(final):
        trainer = make_trainer(config, environment=corridor(final))
        state = trainer.init(jax.random.key(0))
        state, metrics = jax.lax.scan(lambda state, _: trainer.step(state), state, None, length=12)
        return state.agent, metrics

    (agent, metrics), with_nan = trained(jnp.float32(0.5)), trained(jnp.float32(jnp.nan))
    assert int(metrics.skipped.sum()) == 0
    assert int(metrics.episodes.sum()) > 0
    jax.tree.map(np.testing.assert_array_equal, (agent, metrics), with_nan)


def test_nan_after_a_terminal_state_changes_no_parameter_of_a_custom_loss():
    config = tiny(hidden_sizes=(8,))
    network = make_network(config, corridor(0.0).spec)

    def q_values(params, obs):
        return network.apply(params, None, (), obs, jnp.zeros(len(obs), bool))[0].q_values

    def loss(params, target_params, key, batch, hyper):
        chosen = jnp.take_along_axis(q_values(params, batch.obs_tm1), batch.a_tm1[:, None], axis=1)
        best = jnp.max(q_values(target_params, batch.obs_t), axis=1)
        td = bootstrapped(batch.r_t, batch.discount_t, best) - chosen[:, 0]
        return td**2, {"abs_td": jnp.abs(td)}

    @quick_jit
    def trained(final):
        trainer = make_trainer(config, environment=corridor(final), loss=loss)
        state, metrics = trainer.chunk(12)(trainer.init(jax.random.key(0)))
        return state.agent, metrics

    (agent, metrics), with_nan = trained(jnp.float32(0.5)), trained(jnp.float32(jnp.nan))
    assert int(metrics.episodes) > 0
    jax.tree.map(np.testing.assert_array_equal, (agent, metrics), with_nan)


def test_nan_after_a_terminal_step_changes_no_lambda_target():
    ends = jnp.array([False, True, False, False])
    arguments = {
        "r_t": jnp.arange(4.0),
        "discount_t": jnp.where(ends, 0.0, jnp.float32(0.9)),
        "invalid": jnp.array([False, False, True, False]),
        "trace_decay": jnp.float32(0.5),
    }
    targets = [
        lambda_targets(values=jnp.array([1.0, 2.0, final, 3.0, 4.0]), **arguments)
        for final in (0.0, jnp.nan)
    ]
    valid = np.array([True, True, False, True])
    np.testing.assert_array_equal(*(np.asarray(target)[valid] for target in targets))
