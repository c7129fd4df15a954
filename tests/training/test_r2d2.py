"""Recurrent networks: the carry, returns within a sequence, and learning from sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.sequence_loss import Sequences, sequence_returns, unroll
from jaxdqn.losses import rescale, unscale
from jaxdqn.networks import make_network
from jaxdqn.replay.ring import gather_transitions, init_ring, write
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Row
from tests.toys import noisy, quick_jit, tiny, watched_run

BATCH, ACTIONS, OBS = 6, 2, 2


def recurrent_config(**overrides):
    """Return a small configuration of a recurrent network."""
    values = {
        "recurrent": "lstm", "recurrent_size": 8, "sequence_length": 6, "burn_in": 2,
        "warmup_rows": 64, **overrides,
    }  # fmt: skip
    return tiny(**values)


def random_rows(seed, length, size=BATCH):
    """Return rows [size, length] of random episodes, each with its final observation."""
    rng = np.random.default_rng(seed)
    first = rng.random((size, length)) < 0.25
    terminated = np.zeros_like(first)
    # The row before that of a final observation may terminate.
    terminated[:, :-2] = first[:, 2:] & (rng.random((size, length - 2)) < 0.5)
    return Row(
        obs=jnp.asarray(rng.normal(size=(size, length, OBS)), jnp.float32),
        first=jnp.asarray(first),
        action=jnp.asarray(rng.integers(ACTIONS, size=(size, length)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(size, length)), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.zeros((size, length), bool),
    )


def applied(network):
    """Return the network's compiled ``apply(params, carry, obs, first)``, without noise."""
    return quick_jit(
        lambda params, carry, obs, first: network.apply(params, None, carry, obs, first)
    )


@pytest.mark.parametrize("n_step", [1, 3])
def test_returns_in_a_sequence_equal_those_of_transitions_from_a_ring(n_step):
    """Write the same rows into a ring and gather them as n-step transitions."""
    sequences = Sequences(burn_in=2, length=7, n_step=n_step)
    rows = random_rows(0, sequences.rows, size=40)
    gamma = jnp.float32(0.9)
    over_rows = jax.vmap(
        lambda *leaves: sequence_returns(*leaves, gamma, sequences), in_axes=(0, 0, 0)
    )
    returns = jax.device_get(quick_jit(over_rows)(rows.reward, rows.terminated, rows.first))
    gather = quick_jit(
        lambda ring, index: gather_transitions(ring, index, gamma, n_step=n_step, frame_stack=1)
    )
    by_time = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), rows)
    example = jax.tree.map(lambda leaf: leaf[0, 0], by_time)
    ring = quick_jit(write)(init_ring(example, 40, sequences.rows), by_time)
    rows = jax.device_get(rows)
    for step in range(sequences.length):
        index = (sequences.burn_in + step) * 40 + np.arange(40, dtype=np.int32)
        batch = jax.device_get(gather(ring, index))
        valid = np.asarray(returns.valid[:, step])
        np.testing.assert_array_equal(valid, ~np.asarray(rows.first[:, 3 + step]))
        np.testing.assert_allclose(returns.r_t[valid, step], batch.r_t[valid], atol=1e-6)
        np.testing.assert_allclose(
            returns.discount_t[valid, step], batch.discount_t[valid], rtol=1e-6
        )
        at = np.asarray(returns.bootstrap[:, step])
        seen = np.asarray(rows.obs)[np.arange(40), at]
        alive = valid & (np.asarray(batch.discount_t) > 0)
        np.testing.assert_array_equal(seen[alive], np.asarray(batch.obs_t)[alive])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_carry_is_kept_within_an_episode_and_reset_between_episodes(kind):
    network = make_network(recurrent_config(recurrent=kind), noisy().spec)
    obs = np.asarray(random_rows(1, 3).obs)
    params = quick_jit(network.init)(jax.random.key(0), obs[:, 0])
    apply = applied(network)
    no, yes = jnp.zeros(BATCH, bool), jnp.ones(BATCH, bool)
    start = network.initial_carry(BATCH)
    fresh, _ = apply(params, start, obs[:, 1], yes)
    _, carry = apply(params, start, obs[:, 0], yes)
    continued, _ = apply(params, carry, obs[:, 1], no)
    reset, _ = apply(params, carry, obs[:, 1], yes)
    np.testing.assert_array_equal(reset.q_values, fresh.q_values)
    assert (np.abs(continued.q_values - fresh.q_values) > 1e-6).all()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_unrolling_a_network_equals_applying_it_row_by_row(kind):
    config = recurrent_config(recurrent=kind, loss="quantile", quantiles=3)
    network = make_network(config, noisy().spec)
    rows = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), random_rows(1, 5))
    params = quick_jit(network.init)(jax.random.key(0), rows.obs[0])
    carry = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), network.initial_carry(BATCH)
    )

    def results(network):
        def total(params):
            output, last = unroll(network, params, None, carry, rows.obs, rows.first)
            return jnp.sum(jnp.sin(output.distribution.values)), (output, last)

        return quick_jit(jax.grad(total, has_aux=True))(params)

    for one, other in zip(
        jax.tree.leaves(results(network)),
        jax.tree.leaves(results(network._replace(unroll=None))),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_only_the_cell_is_in_the_scan_over_rows():
    network = make_network(recurrent_config(), noisy().spec)
    rows = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), random_rows(1, 5))
    params = quick_jit(network.init)(jax.random.key(0), rows.obs[0])

    def products_in_scan(network):
        jaxpr = jax.make_jaxpr(lambda *args: unroll(network, params, None, *args))(
            network.initial_carry(BATCH), rows.obs, rows.first
        )
        (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        return str(scan.params["jaxpr"]).count("= dot_general")

    # In the scan are the cell's products with its input and its state, and without ``unroll`` also
    # those of torso and head.
    assert products_in_scan(network) == 2
    assert products_in_scan(network._replace(unroll=None)) == 4


def h(x):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 1e-3 * x


def h_inverse(x):
    """Invert ``h`` by bisection, independent of the formula in ``unscale``."""
    low, high = np.full_like(x, -1e6), np.full_like(x, 1e6)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = np.where(h(middle) < x, middle, low), np.where(h(middle) < x, high, middle)
    return middle


@pytest.mark.parametrize(
    ("double", "rescaled"),
    [
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_td_errors_and_loss_equal_those_of_a_python_loop_over_rows(double, rescaled):
    """Unroll the networks in Python, row by row, with one-step returns."""
    config = recurrent_config(double=double, n_step=1, loss="squared", gamma=0.9)
    sequences = Sequences(config.burn_in, config.sequence_length, 1)
    network = make_network(config, noisy().spec)
    agent = make_agent(
        network, _sgd, double=double, loss="squared", sequences=sequences, rescale=rescaled
    )
    rows = random_rows(2, sequences.rows)
    carry = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape),
        network.initial_carry(BATCH),
    )
    hyper = hyper_from(config)
    state = quick_jit(lambda *args: agent.init(*args, hyper=hyper))(
        jax.random.key(0), rows.obs[:, 0]
    )
    target_params = quick_jit(network.init)(jax.random.key(1), rows.obs[:, 0])
    state = state._replace(target_params=target_params)
    learn = quick_jit(lambda *args: agent.learn(*args, hyper=hyper))
    _, info = learn(jax.random.key(2), state, rows._replace(extras=carry), jnp.ones(BATCH))

    apply, rows = applied(network), jax.device_get(rows)

    def unroll(params):
        now, values = carry, []
        for step in range(sequences.rows):
            output, now = apply(params, now, rows.obs[:, step], rows.first[:, step])
            values.append(np.asarray(output.q_values))
        return np.stack(values, axis=1)

    online, target = unroll(state.params), unroll(state.target_params)
    expected, losses = [], []
    for b in range(BATCH):
        tds = []
        for t in range(2, 2 + config.sequence_length):
            if bool(rows.first[b, t + 1]):
                continue
            choice = np.argmax((online if double else target)[b, t + 1])
            value = np.float64(target[b, t + 1, choice])
            value = h_inverse(value) if rescaled else value
            value = float(rows.reward[b, t]) + 0.9 * value * (not bool(rows.terminated[b, t]))
            value = h(value) if rescaled else value
            tds.append(value - online[b, t, int(rows.action[b, t])])
        sizes = np.abs(tds)
        expected.append(0.9 * sizes.max() + 0.1 * sizes.mean())
        losses.append(0.5 * np.square(tds).sum() / config.sequence_length)
    np.testing.assert_allclose(info.abs_td, expected, rtol=1e-4)
    np.testing.assert_allclose(info.loss, np.mean(losses), rtol=1e-4)


def _sgd(hyper):
    import optax

    return optax.sgd(hyper.learning_rate)


def test_no_gradient_flows_through_the_burn_in():
    """Compare the step with gradients that stop at the burn-in, and with ones that do not."""
    config = recurrent_config(burn_in=3, sequence_length=1, loss="squared")
    sequences = Sequences(3, 1, 1)
    network = make_network(config, noisy().spec)
    rows = random_rows(3, sequences.rows)._replace(
        first=jnp.zeros((BATCH, sequences.rows), bool),
        terminated=jnp.ones((BATCH, sequences.rows), bool),
    )
    params = quick_jit(network.init)(jax.random.key(0), rows.obs[:, 0])

    def loss(params, stop):
        carry = network.initial_carry(BATCH)
        for step in range(3):
            _, carry = network.apply(params, None, carry, rows.obs[:, step], rows.first[:, step])
        carry = jax.lax.stop_gradient(carry) if stop else carry
        q = network.apply(params, None, carry, rows.obs[:, 3], rows.first[:, 3])[0].q_values
        chosen = q[jnp.arange(BATCH), rows.action[:, 3]]
        return jnp.mean(0.5 * (rows.reward[:, 3] - chosen) ** 2)

    agent = make_agent(network, _sgd, loss="squared", sequences=sequences)
    hyper = hyper_from(config)
    state = quick_jit(lambda *args: agent.init(*args, hyper=hyper))(
        jax.random.key(0), rows.obs[:, 0]
    )
    rows = rows._replace(extras=network.initial_carry(BATCH))
    learn = quick_jit(lambda *args: agent.learn(*args, hyper=hyper))
    after, _ = learn(jax.random.key(2), state, rows, jnp.ones(BATCH))
    gradient = quick_jit(jax.grad(loss), static_argnums=1)
    for stop, equal in ((True, True), (False, False)):
        grads = gradient(params, stop)
        expected = jax.tree.map(lambda p, g: p - hyper.learning_rate * g, params, grads)
        close = jax.tree.map(
            lambda a, b: np.allclose(a, b, rtol=0, atol=1e-7), after.params, expected
        )
        assert all(jax.tree.leaves(close)) == equal


@pytest.mark.parametrize(
    "fields",
    [
        {"sequence_stride": 1},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"rollout_length": 4}, marks=pytest.mark.slow),
    ],
)
def test_the_carry_at_a_start_is_the_one_with_which_its_row_was_acted(fields):
    config = recurrent_config(**fields)
    stride = config.start_stride
    assert stride == fields.get("sequence_stride", 3)
    trainer = make_trainer(config, environment=noisy())
    state = quick_jit(trainer.init)(jax.random.key(0))
    network = make_network(config, noisy().spec)
    replay, apply = jax.device_get(state.replay), applied(network)
    carry = network.initial_carry(4)
    for row in range(10):  # the warm-up acts with the initial parameters
        if row % stride == 0:
            stored = jax.tree.map(lambda leaf, row=row: leaf[row // stride], replay.start_extras)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, stored)
        first = (replay.storage.flags[row] & 1).astype(bool)
        _, carry = apply(state.agent.params, carry, replay.storage.obs[row], first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [{}, {"recurrent": "gru", "n_step": 3, "double": True, "rescale_values": True},
                  {"loss": "quantile", "dueling": True}, {"loss": "categorical", "burn_in": 0}]
)  # fmt: skip
def test_every_recurrent_variant_learns(overrides):
    trainer = make_trainer(recurrent_config(**overrides), environment=noisy())
    start, end, metrics, _ = watched_run(trainer, 10)
    assert int(metrics.skipped.sum()) == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.agent.params, end.agent.params)
    assert all(jax.tree.leaves(moved))


def test_rescaling_has_known_values_and_an_inverse():
    values = jnp.array([-1e4, -30.0, -1.0, -1e-3, 0.0, 1e-3, 2.0, 8.0, 1e4])
    epsilon = jnp.float32(1e-3)
    np.testing.assert_allclose(rescale(jnp.float32(8), epsilon), 2 + 8e-3, rtol=1e-6)
    np.testing.assert_allclose(unscale(rescale(values, epsilon), epsilon), values, rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rescaling_keeps_its_digits_near_zero_and_far_from_it(sign):
    values = sign * np.logspace(-30, 6, 73)
    exact = np.sign(values) * np.expm1(0.5 * np.log1p(np.abs(values))) + 1e-3 * values
    epsilon = jnp.float32(1e-3)
    scaled = rescale(jnp.asarray(values, jnp.float32), epsilon)
    np.testing.assert_allclose(scaled, exact, rtol=1e-6)
    np.testing.assert_allclose(unscale(jnp.asarray(exact, jnp.float32), epsilon), values, rtol=1e-6)
    assert rescale(jnp.float32(1e-7), jnp.float32(1e-3)) == pytest.approx(5.01e-8, rel=1e-3)
    slope = jax.grad(lambda value: rescale(value, epsilon))(jnp.float32(0.0))
    assert slope == pytest.approx(0.501)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frame_stack": 2}, "frame_stack=2: must be 1 with recurrent"),
        ({"noisy": True}, "noisy=True: must be False with recurrent"),
        ({"loss": "quantile", "rescale_values": True}, "rescale_values=True: must be False with"),
        ({"burn_in": -1}, "burn_in=-1: must be at least 0"),
        ({"recurrent": "none", "burn_in": 3}, "must be .* unless recurrent='lstm'"),
        ({"warmup_rows": 32}, "warmup_rows=32: must be above"),
        ({"replay_capacity": 36}, "replay_capacity=36: must be above num_envs"),
        ({"replay_capacity": 48}, "replay_capacity=48: must be above .*stride-1.=48"),
        ({"sequence_stride": 0}, "sequence_stride=0: must be at least 1"),
        (
            {"recurrent": "none", "recurrent_size": 128, "sequence_length": 16, "burn_in": 4,
             "sequence_stride": 2},
            "sequence_stride=2: must be None unless recurrent='lstm'",
        ),
    ],
)  # fmt: skip
def test_options_without_effect_or_in_conflict_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        recurrent_config(**fields)
