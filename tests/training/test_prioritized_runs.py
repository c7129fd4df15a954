"""Prioritised replay in a run: weights, priorities, devices, redistribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn.training.algorithms as module
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.replay import importance_weights
from jaxdqn.replay.redistribute import redistribute
from jaxdqn.replay.ring import in_order
from jaxdqn.storage.state import snapshot_key_data, to_host
from jaxdqn.training.dqn import make_importance_weights, make_replay
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.learner import example_row
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Agent, LearnInfo, SampleInfo, make_counter
from tests.toys import noisy, quick_jit, tiny


def config_of(**more):
    return tiny(**{"replay": "prioritized", "replay_capacity": 64, "total_rows": 4_000, **more})


def trainer_over(config):
    trainer = make_trainer(
        config, environment=noisy(), collectives=device_collectives(config.devices)
    )
    return across_devices(trainer, jax.devices()[: config.devices])


def leaves_of(state, rows):
    return np.asarray(state.replay.tree.levels[0]).ravel()[:rows]


def watch_learn(monkeypatch, seen):
    """Record the weights and TD errors of every gradient step in ``seen``."""
    make = module.make_agent

    def make_watched(*args, **kwargs):
        agent: Agent = make(*args, **kwargs)

        def learn(key, state, batch, weights, *, hyper):
            state, info = agent.learn(key, state, batch, weights, hyper=hyper)
            jax.debug.callback(lambda *values: seen.append(values), weights, info.abs_td)
            return state, info

        return agent._replace(learn=learn)

    monkeypatch.setattr(module, "make_agent", make_watched)


def test_a_step_uses_importance_weights_and_writes_new_priorities(monkeypatch):
    config, seen = config_of(priority_exponent=0.7, importance_exponent=0.5), []
    watch_learn(monkeypatch, seen)
    trainer, replay = make_trainer(config, environment=noisy()), make_replay(config)
    state = quick_jit(trainer.init)(jax.random.key(0))
    step = quick_jit(trainer.step)
    for _ in range(12):
        before = state
        state, _ = step(state)
    jax.effects_barrier()
    # Repeat the draw: the iteration adds its row, then samples with its second last key.
    rows = 4 * 16
    keys = jax.random.split(before.key, 1 + (1 + 4) + 2)
    weights, abs_td = seen[-1]
    after = leaves_of(state, rows)
    changed = (abs_td + 1e-6) ** 0.7
    assert np.isin(np.float32(changed).round(5), after.round(5)).all()
    # Beta has risen with the rows: it would be half way from 0.5 to 1 at half the budget.
    progress = (32 + 12 * 4) / 4_000
    added = _with_rows_added(before, state)
    _, sample = quick_jit(replay.sample)(keys[-2], added, jnp.float32(0.99))
    expected = importance_weights(
        sample.probabilities, jnp.float32(0.5 + 0.5 * progress), lambda value: value
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    assert weights.max() == 1.0
    assert weights.min() < 0.9


def _with_rows_added(before, after):
    """Return the replay of ``before`` with the newest rows of ``after`` added."""
    config = config_of(priority_exponent=0.7, importance_exponent=0.5)
    replay = make_replay(config)
    newest = jax.tree.map(lambda leaf: leaf[-1:], in_order(after.replay.ring))
    return quick_jit(replay.add)(before.replay, newest)


def test_beta_starts_at_its_option_and_ends_at_one():
    config = config_of(importance_exponent=0.25)
    assert float(hyper_from(config).importance_exponent) == 0.25
    state = quick_jit(make_trainer(config, environment=noisy()).init)(jax.random.key(0))
    sample = SampleInfo(jnp.arange(2), jnp.array([0.1, 0.4]))
    for rows, exponent in ((0, 0.25), (2_000, 0.625), (4_000, 1.0), (9_000, 1.0)):
        counters = state.counters._replace(rows=make_counter(rows))
        weights_of = make_importance_weights(config, identity_collectives)
        weights = weights_of(state._replace(counters=counters), sample)
        np.testing.assert_allclose(weights, [1.0, 0.25**exponent], rtol=1e-5)


@pytest.mark.slow
def test_devices_normalise_by_the_global_maximum_weight_and_stay_replicas(monkeypatch):
    config, seen = config_of(devices=2, num_envs=8, batch_size=16), []
    watch_learn(monkeypatch, seen)
    trainer = trainer_over(config)
    state = jax.block_until_ready(quick_jit(trainer.init)(jax.random.key(0)))
    step = quick_jit(trainer.step)
    for _ in range(20):
        state, _ = jax.block_until_ready(step(state))
    jax.effects_barrier()
    maxima = [float(weights.max()) for weights, _ in seen]
    pairs = np.array(maxima).reshape(20, 2)
    np.testing.assert_allclose(pairs.max(axis=1), 1.0, rtol=1e-6)
    assert (pairs.min(axis=1) < 1.0).any(), "each device used its own maximum"
    for leaf in jax.tree.leaves(state.agent.params):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    trees = np.asarray(state.replay.tree.levels[0])
    assert (trees[0] != trees[1]).any(), "each device has its own priorities"


SEQUENCES = {
    "recurrent": "gru", "recurrent_size": 8, "sequence_length": 3, "burn_in": 1,
    "sequence_stride": 3,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("replay", ["prioritized", "uniform"])
def test_sequences_are_redistributed_over_devices_with_their_carries_and_priorities(replay):
    config = config_of(
        replay=replay, devices=2, num_envs=8, batch_size=16, replay_capacity=128, warmup_rows=64,
        **SEQUENCES,
    )  # fmt: skip
    trainer = trainer_over(config)
    state = quick_jit(trainer.init)(jax.random.key(0))
    state, _ = jax.block_until_ready(quick_jit(trainer.chunk(30))(state))
    saved = to_host(jax.jit(snapshot_key_data)(state)).replay
    divided = redistribute(saved, 4, stride=3)

    def by_env(leaf):
        """Return [D, slots, E, ...] as [slots, D * E, ...]."""
        leaf = np.moveaxis(leaf, 0, 1)
        return leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])

    assert saved.start_extras.shape == (2, 6, 4, 8)  # 16 slots, of which 6 are starts
    np.testing.assert_array_equal(by_env(divided.start_extras), by_env(saved.start_extras))
    np.testing.assert_array_equal(by_env(divided.storage.reward), by_env(saved.storage.reward))
    if replay == "prioritized":
        one, other = (
            by_env(r.tree.levels[0].reshape(d, -1)[:, : 6 * 8 // d].reshape(d, 6, 8 // d))
            for r, d in ((divided, 4), (saved, 2))
        )
        np.testing.assert_array_equal(one, other)
        assert one.any()
    target = config_of(
        replay=replay, devices=4, num_envs=8, batch_size=16, replay_capacity=128, warmup_rows=64,
        **SEQUENCES,
    )  # fmt: skip
    shapes = jax.eval_shape(quick_jit(trainer_over(target).init), jax.random.key(0)).replay
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), divided, shapes)


@pytest.mark.slow
def test_the_priority_of_a_sequence_is_made_of_its_largest_and_its_mean_error(monkeypatch):
    config, seen = config_of(priority_exponent=0.7, warmup_rows=32, **SEQUENCES), []
    watch_learn(monkeypatch, seen)
    trainer = make_trainer(config, environment=noisy())
    state = quick_jit(trainer.init)(jax.random.key(0))
    step = quick_jit(trainer.step)
    for _ in range(4):
        state, _ = step(state)
    jax.effects_barrier()
    weights, abs_td = seen[-1]
    after = leaves_of(state, 4 * 6)
    assert np.isin(np.float32((abs_td + 1e-6) ** 0.7).round(5), after.round(5)).all()
    assert weights.max() == 1.0
    assert weights.min() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)]
)
def test_priorities_are_redistributed_over_devices_with_their_rows(devices):
    config = config_of(devices=2, num_envs=8, batch_size=16, replay_capacity=128)
    trainer = trainer_over(config)
    state = quick_jit(trainer.init)(jax.random.key(0))
    state, _ = jax.block_until_ready(quick_jit(trainer.chunk(30))(state))
    saved = to_host(jax.jit(snapshot_key_data)(state))
    divided = redistribute(saved.replay, devices)

    def by_row(replay):
        shape = replay.storage.flags.shape
        leaves = replay.tree.levels[0].reshape(shape[0], -1)[:, : shape[1] * shape[2]]
        return np.moveaxis(leaves.reshape(shape), 0, 1).reshape(shape[1], -1)

    np.testing.assert_array_equal(by_row(divided), by_row(saved.replay))
    assert by_row(divided).any()
    totals = divided.tree.levels[-1].sum(axis=(1, 2))
    np.testing.assert_allclose(totals.sum(), by_row(saved.replay).sum(), rtol=1e-5)
    # A new trainer on that many devices makes a replay of the same shapes.
    target = config_of(devices=devices, num_envs=8, batch_size=16, replay_capacity=128)
    shapes = jax.eval_shape(make_replay(target).init, example_row(noisy().spec))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape[1:], b.shape), divided, shapes)


def test_priorities_stay_finite_after_a_gradient_that_is_not_finite(monkeypatch):
    make = module.make_agent

    def make_broken(*args, **kwargs):
        agent = make(*args, **kwargs)

        def learn(key, state, batch, weights, *, hyper):
            state, info = agent.learn(key, state, batch, weights, hyper=hyper)
            nan = jnp.full_like(info.abs_td, jnp.nan)
            return state, LearnInfo(info.loss * jnp.nan, nan, info.grad_norm, info.q_mean)

        return agent._replace(learn=learn)

    monkeypatch.setattr(module, "make_agent", make_broken)
    trainer = make_trainer(config_of(guard="skip"), environment=noisy())
    state = quick_jit(trainer.init)(jax.random.key(0))
    state, metrics = quick_jit(trainer.chunk(5))(state)
    assert int(metrics.skipped) == 5
    assert np.isfinite(leaves_of(state, 64)).all()
    assert np.isfinite(state.replay.max_priority)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"priority_exponent": 0.9}, "priority_exponent=0.9"),
        ({"importance_exponent": 0.9}, "importance_exponent=0.9"),
        ({"replay": "prioritized", "priority_exponent": 1.5}, "priority_exponent=1.5"),
        ({"sweep": ("importance_exponent=0.1,0.2",)}, "sweep"),
    ],
)
def test_options_without_effect_or_out_of_range_are_rejected(fields, names):
    with pytest.raises(ValueError, match=names):
        tiny(**fields)
