"""Periodic averaging against two replicas computed by hand, and against the all-reduce."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.communication.averaging import agreed_count, make_average
from jaxdqn.communication.collectives import DEVICE_AXIS, identity_collectives
from jaxdqn.monitoring.records import chunk_record
from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.training.guard import not_finite
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import AgentState
from tests.toys import noisy, quick_jit, tiny
from tests.training.test_guard import poisoned

DEVICES = 2


def averaged(config, optimizer=None, environment=None, mapping="shard_map"):
    trainer = make_trainer(
        config,
        environment=environment or noisy(),
        optimizer=optimizer,
        collectives=device_collectives(DEVICES, deterministic=config.deterministic),
    )
    return across_devices(trainer, jax.devices()[:DEVICES], mapping=mapping)


def doubling(hyper):
    """An optimiser that leaves the parameters of device 0 and doubles those of device 1.

    Its moment counts steps on device 1 only.
    """

    def update(gradients, moment, params):
        index = jax.lax.axis_index(DEVICE_AXIS).astype(jnp.float32)
        return jax.tree.map(lambda leaf: index * leaf, params), moment + index

    return optax.GradientTransformation(lambda params: jnp.float32(0), update)


def by_hand(steps, every, *, period=None, tau=None, moments=False):
    """Compute two replicas of one parameter, initially 1, under ``doubling``.

    Returns each replica's parameter, target and moment [2], and the gaps.
    """
    params, target, moment = np.ones(2), np.ones(2), np.zeros(2)
    gaps = []
    for step in range(1, steps + 1):
        params = params * np.array([1, 2])
        moment = moment + np.arange(2)
        if tau is not None:
            target = target + tau * (params - target)
        if step % every == 0:
            mean = params.mean()
            gaps.append(np.sqrt(np.mean((params - mean) ** 2)) / mean)
            params = np.full(2, mean)
            if tau is not None:
                target = np.full(2, target.mean())
            if moments:
                moment = np.full(2, moment.mean())
        if tau is None and step % period == 0:
            target = params.copy()
    return params, target, moment, gaps


CASES = [
    # Within an iteration of four gradient steps: at its end, twice, and after every step.
    {"gradient_steps": 4, "average_every": 4, "target_period": 4},
    {"gradient_steps": 4, "average_every": 2, "target_period": 2, "average_moments": True},
    {"gradient_steps": 4, "average_every": 1, "target_period": 3},
    # Over several iterations.
    {"gradient_steps": 1, "average_every": 4, "target_period": 8},
    {"gradient_steps": 2, "average_every": 8, "target_period": 8, "average_moments": True},
    {"gradient_steps": 2, "average_every": 4, "target_tau": 0.25},
    {"gradient_steps": 2, "average_every": 1, "target_tau": 0.25, "deterministic": True},
]


@pytest.mark.parametrize(
    "case", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])], ids=str
)
def test_replicas_follow_the_computation_by_hand(case):
    config = tiny(devices=DEVICES, **case)
    trainer = averaged(config, doubling)
    iterations = 8 // config.gradient_steps
    start = quick_jit(trainer.init)(jax.random.key(0))
    end, metrics = quick_jit(trainer.chunk(iterations))(start)
    params, target, moment, gaps = by_hand(
        8,
        config.average_every,
        period=config.target_period,
        tau=config.target_tau,
        moments=config.average_moments,
    )
    np.testing.assert_array_equal(end.agent.opt_state, moment)
    for factors, leaves in ((params, end.agent.params), (target, end.agent.target_params)):
        for first, last in zip(
            jax.tree.leaves(start.agent.params), jax.tree.leaves(leaves), strict=True
        ):
            np.testing.assert_array_equal(last[0], last[1])
            # The factors are exact in binary, except those of Polyak steps.
            for replica, factor in enumerate(factors):
                np.testing.assert_allclose(last[replica], factor * first[0], rtol=1e-6)
    assert int(metrics.averagings) == len(gaps) == 8 // config.average_every
    np.testing.assert_allclose(metrics.gap_sum, np.sum(gaps), rtol=1e-5)
    record = chunk_record(jax.device_get(metrics), 1.0)
    np.testing.assert_allclose(record["replica_gap"], np.mean(gaps), rtol=1e-5)


@pytest.mark.slow
def test_replicas_differ_between_averagings_and_a_single_step_does_not_average():
    trainer = averaged(tiny(devices=DEVICES, average_every=4, target_period=4))
    start = quick_jit(trainer.init)(jax.random.key(0))
    state, metrics = quick_jit(trainer.step)(start)
    assert int(metrics.averagings) == 0
    assert "replica_gap" not in chunk_record(jax.device_get(metrics), 1.0)
    for leaf in jax.tree.leaves(state.agent.params):
        assert (leaf[0] != leaf[1]).any()
    with pytest.raises(ValueError, match="iterations=6: must be a positive multiple of 4"):
        trainer.chunk(6)


@pytest.mark.slow
def test_replicas_are_equal_after_a_chunk_and_moments_on_request():
    for moments, mapping in ((False, "shard_map"), (True, "pmap")):
        config = tiny(devices=DEVICES, average_every=8, target_period=16, average_moments=moments)
        trainer = averaged(config, mapping=mapping)
        start = quick_jit(trainer.init)(jax.random.key(0))
        end, metrics = quick_jit(trainer.chunk(400))(start)
        assert int(metrics.averagings) == 50
        assert 0 < float(metrics.gap_sum) / 50 < 0.1
        for leaf in jax.tree.leaves(end.agent._replace(opt_state=())):
            np.testing.assert_array_equal(leaf[0], leaf[1])
        state = jax.tree.leaves(end.agent.opt_state)
        equal = [bool((leaf[0] == leaf[1]).all()) for leaf in state]
        assert all(equal) == moments
        # Both replicas have learned.
        for first, last in zip(
            jax.tree.leaves(start.agent.params), jax.tree.leaves(end.agent.params), strict=True
        ):
            assert (first[0] != last[0]).any()


@pytest.mark.slow
def test_averaging_at_every_step_equals_the_all_reduce_for_plain_gradient_descent():
    """One iteration from each of twenty states of a run."""
    values = {"devices": DEVICES, "learning_rate": 0.05, "target_period": 7, "loss": "huber"}

    def plain(hyper):
        return optax.sgd(hyper.learning_rate)

    reduced = averaged(tiny(**values), plain)
    local = averaged(tiny(average_every=1, **values), plain)
    state = quick_jit(reduced.init)(jax.random.key(0))
    reduced_step, local_step = quick_jit(reduced.step), quick_jit(local.step)
    moved = 0.0
    for _ in range(20):
        expected, _ = reduced_step(state)
        learned, metrics = local_step(state)
        assert float(metrics.gap_sum) > 0
        # mean(p - a g_i) and p - a mean(g_i) each round a few numbers of the size of p.
        for ours, theirs, before in zip(
            jax.tree.leaves((learned.agent.params, learned.agent.target_params)),
            jax.tree.leaves((expected.agent.params, expected.agent.target_params)),
            jax.tree.leaves((state.agent.params, state.agent.target_params)),
            strict=True,
        ):
            largest = np.maximum(np.abs(before).max(), np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=4 * 2**-24 * largest)
            moved = max(moved, np.abs(ours - before).max())
        np.testing.assert_array_equal(learned.agent.since_target, expected.agent.since_target)
        state = expected
    assert moved > 1e-3


@pytest.mark.slow
def test_a_replica_can_undo_its_step_and_all_agree_after_averaging():
    config = tiny(devices=DEVICES, average_every=2, target_period=4, guard="skip")
    trainer = averaged(config, environment=poisoned(30, limit=1000))
    state = quick_jit(trainer.init)(jax.random.key(0))
    step, chunk = quick_jit(trainer.step), quick_jit(trainer.chunk(2))
    undone_by_one = 0
    for _ in range(60):
        after, _ = step(state)
        unchanged = [
            all(
                (old[replica] == new[replica]).all()
                for old, new in zip(
                    jax.tree.leaves(state.agent.params),
                    jax.tree.leaves(after.agent.params),
                    strict=True,
                )
            )
            for replica in range(DEVICES)
        ]
        undone_by_one += unchanged[0] != unchanged[1]
        state, _ = chunk(state)
        counts = [leaf for leaf in jax.tree.leaves(state.agent.opt_state) if leaf.shape == (2,)]
        assert len(counts) == 1
        for leaf in (*jax.tree.leaves(state.agent._replace(opt_state=())), *counts):
            np.testing.assert_array_equal(leaf[0], leaf[1])
    assert undone_by_one > 0
    assert not not_finite(state.agent)


@pytest.mark.parametrize(("every", "period"), [(1, 1), (1, 3), (2, 4), (3, 3), (2, 6)])
def test_replicas_agree_on_the_steps_since_the_target_was_replaced(every, period):
    for start in range(0, period, every):
        for kept in itertools.product(range(every + 1), repeat=2):
            counts = [(start + steps) % period for steps in kept]
            agreed = int(agreed_count(jnp.asarray(counts, jnp.int32), every, period))
            if max(kept) == 0:
                assert agreed == start  # no replica took a step
            elif min(kept) > 0 or start > 0:
                assert agreed == (start + every) % period
            else:
                # One has replaced its target and undone all steps since: all replace it again.
                assert agreed == 0
            # If one replica has replaced its target, all replace theirs.
            if any(count == 0 for count in counts):
                assert agreed == 0


@pytest.mark.parametrize("moments", [False, True])
def test_the_gap_is_relative_to_the_norm_and_counts_become_the_largest(moments):
    config = tiny(devices=2, average_every=1, average_moments=moments)
    agent_state = AgentState(
        params={"a": jnp.float32([3.0]), "b": jnp.full((150, 150), 2.0)},
        target_params={"a": jnp.float32([0.0]), "b": jnp.zeros((150, 150))},
        opt_state={
            "count": jnp.int32(5),
            "mu": jnp.float32([1.0]),
            "codes": jnp.int32([3, 4]),
            "schedule": jnp.int32(9),
        },
        since_target=jnp.int32(1),
    )

    def shifted(scale):
        return jax.tree.map(
            lambda leaf: leaf * scale if leaf.dtype == jnp.float32 else leaf, agent_state
        )

    def with_lower_count(agent_state, name):
        state = agent_state.opt_state
        return agent_state._replace(opt_state={**state, name: state[name] - 2})

    both = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        with_lower_count(shifted(0.5), "count"),
        with_lower_count(shifted(1.5), "schedule"),
    )
    average = make_average(config, device_collectives(2), target_period=config.target_period)
    after, gap = jax.vmap(average, axis_name=DEVICE_AXIS)(both)
    np.testing.assert_allclose(gap, [0.5, 0.5], rtol=1e-5)
    for replica in range(2):
        ours = jax.tree.map(lambda leaf: leaf[replica], after)  # noqa: B023
        mu = jnp.float32([1.0 if moments else 0.5 + replica])
        expected = agent_state._replace(opt_state={**agent_state.opt_state, "mu": mu})
        jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_a_single_replica_has_no_gap():
    config = tiny()
    params = {"a": jnp.arange(3.0)}
    agent_state = AgentState(params, params, (), jnp.int32(1))
    after, gap = make_average(config, identity_collectives, target_period=config.target_period)(
        agent_state
    )
    assert float(gap) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after, agent_state)
