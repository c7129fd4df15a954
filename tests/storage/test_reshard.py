"""Resharding: the state of a run on a different number of devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.communication.compression import ResidualState
from jaxdqn.config.config import replace
from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.replay.export import export_rows
from jaxdqn.replay.redistribute import redistribute
from jaxdqn.storage.reshard import reshard, same_layout, state_shape
from jaxdqn.storage.state import restore_keys, snapshot_key_data, to_host
from jaxdqn.training.trainer import make_trainer
from tests.toys import noisy, quick_jit, tiny


def config_over(devices, **more):
    return tiny(**{"num_envs": 8, "batch_size": 16, "replay_capacity": 256, "devices": devices,
                   **more})  # fmt: skip


def trainer_of(config):
    if config.devices == 1:
        return make_trainer(config, environment=noisy())
    trainer = make_trainer(
        config, environment=noisy(), collectives=device_collectives(config.devices)
    )
    return across_devices(trainer, jax.devices()[: config.devices])


@functools.cache
def started(config, iterations):
    """Return the first state of a run and its compiled chunk."""
    trainer = trainer_of(config)
    return quick_jit(trainer.init)(jax.random.key(0)), quick_jit(trainer.chunk(iterations))


def saved_after(config, iterations):
    each = min(iterations, 10)
    state, chunk = started(config, each)
    for _ in range(iterations // each):
        state, _ = chunk(state)
    return to_host(jax.jit(snapshot_key_data)(state))


@pytest.fixture(scope="module", params=[10, 60], ids=["partly full", "wrapped"])
def saved(request):
    """Return a configuration of two devices and its state; the ring is partly full or wrapped."""
    config = config_over(2)
    return config, saved_after(config, request.param)


def starts_of(replay):
    """Return the valid starts of each device in order of eviction, as (slot, environment)."""
    found = []
    _, _, each = replay.storage.flags.shape
    for device, (starts, tail, count) in enumerate(
        zip(replay.starts, replay.tail, replay.count, strict=True)
    ):
        live = starts[(tail + np.arange(count)) % starts.size]
        found.append([(int(i) // each, device * each + int(i) % each) for i in live])
    return found


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_rows_keep_their_order_and_every_valid_start_is_kept_once(saved, devices):
    _, arrays = saved
    divided = redistribute(arrays.replay, devices)
    before = export_rows(arrays.replay, devices=2)
    after = export_rows(
        jax.tree.map(lambda leaf: leaf[0], divided) if devices == 1 else divided, devices=devices
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    old, new = ([*itertools.chain(*starts_of(each))] for each in (arrays.replay, divided))
    assert sorted(old) == sorted(new)
    assert len(set(new)) == sum(divided.count)
    position = int(arrays.replay.position[0])
    for live in starts_of(divided):
        ages = [(slot - position) % 32 for slot, _ in live]
        assert ages == sorted(ages)


def test_redistributing_back_gives_the_same_replay(saved):
    _, arrays = saved
    back = redistribute(redistribute(arrays.replay, 8), 2)
    again = redistribute(arrays.replay, 2)
    jax.tree.map(np.testing.assert_array_equal, back, again)


@pytest.mark.parametrize("devices", [1, *(pytest.param(d, marks=pytest.mark.slow) for d in (2, 4))])
def test_the_run_continues_on_other_devices(saved, devices):
    old, arrays = saved
    new = replace(old, devices=devices)
    target = state_shape(new, environment=noisy())
    moved = reshard(arrays, old, new, target)
    trainer = trainer_of(new)
    assert jax.tree.map(lambda leaf: leaf.shape, target) == jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(trainer.init, jax.random.key(0))
    )
    state = jax.jit(lambda arrays: restore_keys(arrays, target))(moved)
    first = (lambda leaf: leaf) if devices == 1 else (lambda leaf: leaf[0])
    for name in ("params", "target_params", "opt_state", "since_target"):
        jax.tree.map(
            lambda now, then: np.testing.assert_array_equal(first(now), then[0]),
            getattr(state.agent, name),
            getattr(arrays.agent, name),
        )
    if trainer.sharding is not None:
        state = jax.device_put(state, trainer.sharding(target))
    end, metrics = quick_jit(trainer.chunk(20))(state)
    assert np.isfinite(metrics.loss)
    rows = jax.tree.map(first, end.counters.rows)
    assert int(rows.low) == int(arrays.counters.rows.low[0]) + 20 * 8
    if devices > 1:
        keys = jax.random.key_data(state.key)
        assert (keys[0] != keys[1]).any()


@pytest.mark.slow
def test_the_new_devices_draw_only_valid_starts(saved):
    """Compare the valid starts of each device with a recount after more rows were added."""
    old, arrays = saved
    new = replace(old, devices=4)
    target = state_shape(new, environment=noisy())
    trainer = trainer_of(new)
    state = jax.jit(lambda arrays: restore_keys(arrays, target))(reshard(arrays, old, new, target))
    state = jax.device_put(state, trainer.sharding(target))
    end, _ = quick_jit(trainer.chunk(40))(state)  # more than one wrap of the ring
    replay = to_host(end.replay)
    first = (replay.storage.flags & 1) > 0  # [D, T, E]
    position, size = int(replay.position[0]), int(replay.size[0])
    assert size == 32
    for device, live in enumerate(starts_of(replay)):
        wanted = {
            (slot, device * 2 + env)
            for slot in range(32)
            for env in range(2)
            if (position - 1 - slot) % 32 >= 1 and not first[device, (slot + 1) % 32, env]
        }
        assert set(live) == wanted


def moments_after_moving(opt_state, **changes):
    """Return an optimiser state of two devices, [2, ...], resharded to four devices."""
    old, new = config_over(2, **changes), config_over(4, **changes)
    arrays, target = (
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), key_data_shapes(config))
        for config in (old, new)
    )
    arrays = arrays._replace(agent=arrays.agent._replace(opt_state=opt_state))
    like = jax.tree.map(lambda leaf: np.zeros((4, *leaf.shape[1:]), leaf.dtype), opt_state)
    target = target._replace(agent=target.agent._replace(opt_state=like))
    target = target._replace(key=state_shape(new, environment=noisy()).key)
    return reshard(arrays._replace(replay=()), old, new, target).agent.opt_state


def key_data_shapes(config):
    return jax.eval_shape(snapshot_key_data, state_shape(config, environment=noisy()))


def test_residuals_are_recognised_by_type_and_separate_moments_are_averaged():
    moments = {"residual_in": np.float32([[0.1], [0.7]]), "count": np.int32([3, 3])}
    sent = ResidualState(np.ones((2, 8), np.float32))
    residual, moved = moments_after_moving((sent, moments), compression="int8")
    assert residual.residual.shape == (4, 8)
    assert not residual.residual.any()
    # Shared leaves are copied unchanged, even if the name of a layer contains "residual".
    np.testing.assert_array_equal(moved["residual_in"], np.float32([[0.1]] * 4))
    averaging = {"average_every": 2, "gradient_steps": 2, "target_period": 10}
    for average_moments, wanted in ((False, np.float32(0.4)), (True, np.float32(0.1))):
        moved = moments_after_moving(moments, average_moments=average_moments, **averaging)
        np.testing.assert_allclose(moved["residual_in"], [[wanted]] * 4, rtol=1e-6)
        np.testing.assert_array_equal(moved["count"], np.int32([3] * 4))


def test_an_outer_optimiser_moves_and_starts_from_the_parameters_where_there_was_none():
    options = {"average_every": 2, "gradient_steps": 2, "target_period": 10}
    one, two, four = config_over(1), *(
        config_over(devices, outer_optimizer="nesterov", **options) for devices in (2, 4)
    )  # fmt: skip

    def numbered(config):
        numbers = itertools.count(1)
        return jax.tree.map(
            lambda leaf: np.full(leaf.shape, next(numbers), leaf.dtype), key_data_shapes(config)
        )._replace(replay=())

    target = state_shape(four, environment=noisy())
    before = numbered(two)
    outer = reshard(before, two, four, target).agent.opt_state.outer
    for ours, theirs in zip(
        jax.tree.leaves(outer), jax.tree.leaves(before.agent.opt_state.outer), strict=True
    ):
        np.testing.assert_array_equal(ours, np.stack([theirs[0]] * 4))
    before = numbered(one)
    outer = reshard(before, one, four, target).agent.opt_state.outer
    for anchor, momentum, params in zip(
        jax.tree.leaves(outer.anchor), jax.tree.leaves(outer.momentum),
        jax.tree.leaves(before.agent.params), strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(anchor, np.stack([params] * 4))
        assert momentum.shape == anchor.shape
        assert not momentum.any()


@pytest.mark.slow
def test_residuals_start_at_zero_and_separate_moments_are_averaged():
    config = config_over(2, average_every=2, gradient_steps=2, target_period=10)
    arrays = saved_after(config, 6)
    new = replace(config, devices=4)
    target = state_shape(new, environment=noisy())
    moved = reshard(arrays, config, new, target)
    then, now = (
        jax.tree.leaves(arrays.agent.opt_state),
        jax.tree.leaves(moved.agent.opt_state),
    )
    assert any(leaf.ndim > 1 and (leaf[0] != leaf[1]).any() for leaf in then)
    for before, after in zip(then, now, strict=True):
        if np.issubdtype(before.dtype, np.floating):
            np.testing.assert_allclose(after[3], before.mean(axis=0), rtol=1e-6)

    config = config_over(2, compression="int8")
    arrays = saved_after(config, 6)
    new = replace(config, devices=4)
    target = state_shape(new, environment=noisy())
    moved = reshard(arrays, config, new, target)
    (residual,) = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(moved.agent.opt_state)
        if "residual" in jax.tree_util.keystr(path)
    ]
    (before,) = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(arrays.agent.opt_state)
        if "residual" in jax.tree_util.keystr(path)
    ]
    assert np.abs(before).max() > 0
    assert residual.shape[0] == 4
    assert not residual.any()


def test_the_same_layout_is_returned_unchanged(saved):
    config, arrays = saved
    assert same_layout(config, replace(config, mapping="pmap"))
    assert reshard(arrays, config, replace(config, mapping="pmap"), arrays) is arrays
    assert not same_layout(config, replace(config, devices=1))
    assert jnp.asarray(arrays.replay.size).shape == (2,)
