"""The trainer's step: counts, schedules, rows, and which runs are bitwise identical."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.config.config import Config
from jaxdqn.replay import tree_bytes
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import IterationKeys, split_named
from jaxdqn.training.metrics import reduce_metrics
from jaxdqn.training.trainer import make_trainer, train
from jaxdqn.types import SUMMED_METRICS, Metrics, Network, QOutput, counter_int
from tests.toys import cycle, noisy, tiny, watched_run


def assert_identical(one, other):
    """Assert that two trees are bitwise identical, including their keys."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def rows_of(state):
    """Return the ring's flags, actions, rewards and observations, [T, E], up to the newest row."""
    size = int(state.replay.size)
    assert size < state.replay.storage.flags.shape[0], "the ring has wrapped"
    stored = jax.tree.map(lambda leaf: np.asarray(leaf[:size]), state.replay.storage)
    first, terminated, truncated = ((stored.flags & bit) > 0 for bit in (1, 2, 4))
    return first, terminated | truncated, stored.action, stored.reward, stored.obs


SEEDS = 5


@pytest.fixture(scope="module")
def cartpole():
    """A short run of CartPole: 10 iterations in 2 chunks."""
    config = tiny(total_rows=32 + 4 * 10, log_every=20, gradient_steps=2, learning_rate=0.01)
    assert (config.num_chunks, config.iterations_per_chunk) == (2, 5)
    return config, make_trainer(config)


@pytest.fixture(scope="module")
def runs(cartpole):
    """Run five seeds one after the other; return their keys, their runs, and ``run(key)``.

    A run is the first state, the last, and the metrics [chunks].
    """
    trainer = cartpole[1]
    init, chunk = jax.jit(trainer.init), jax.jit(trainer.chunk(5))

    def run(key):
        start = init(key)
        middle, first = chunk(start)
        end, second = chunk(middle)
        return start, end, jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)

    keys = jax.random.split(jax.random.key(0), SEEDS)
    return keys, [run(key) for key in keys], run


def test_two_runs_of_the_same_seed_are_bitwise_identical(runs):
    keys, separate, run = runs
    assert_identical(run(keys[0]), separate[0])


def test_a_scan_is_bitwise_identical_to_a_python_loop_of_steps(cartpole, runs):
    _, separate, _ = runs
    step = jax.jit(cartpole[1].step)
    state, end, scanned = separate[0]
    metrics = []
    for _ in range(10):
        state, step_metrics = step(state)
        metrics.append(step_metrics)
    assert_identical(state, end)
    for chunk in range(2):
        part = metrics[5 * chunk : 5 * chunk + 5]
        reduced = reduce_metrics(jax.tree.map(lambda *leaves: jnp.stack(leaves), *part))
        for name, got in scanned._asdict().items():
            np.testing.assert_allclose(got[chunk], getattr(reduced, name), rtol=1e-6, err_msg=name)


def test_named_keys_are_those_of_one_split_in_the_order_of_the_fields():
    key = jax.random.key(7)
    shapes = IterationKeys(next=(), act=(2, 3), learn=IterationKeys((4,), (), (1, 2)))
    named = split_named(key, shapes)
    assert jax.tree.map(jnp.shape, named) == shapes
    flat = [leaf.ravel() for leaf in jax.tree.leaves(named)]
    assert_identical(jnp.concatenate(flat), jax.random.split(key, 1 + 6 + 4 + 1 + 2))


def test_seeds_give_different_parameters(runs):
    weights = [
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(end.agent.params)])
        for _, end, _ in runs[1]
    ]
    for i in range(SEEDS):
        for j in range(i):
            assert np.abs(weights[i] - weights[j]).max() > 0.01


@pytest.mark.slow
def test_runs_vmapped_over_keys_and_hyper_parameters_equal_the_separate_runs(cartpole, runs):
    """One program runs five seeds, and the first of them again with a learning rate of 0."""
    config, _ = cartpole
    keys, separate, _ = runs
    rates = np.full(SEEDS + 1, config.learning_rate, np.float32)
    rates[SEEDS] = 0.0
    hyper = hyper_from(config)
    axes = jax.tree.map(lambda _: None, hyper)._replace(learning_rate=0)
    swept = jax.jit(jax.vmap(train(config), (0, axes)))
    states, metrics = swept(
        jnp.concatenate([keys, keys[:1]]), hyper._replace(learning_rate=jnp.asarray(rates))
    )

    def without_key(state):
        return state._replace(key=())

    for member in range(SEEDS):
        got = jax.tree.map(lambda leaf, member=member: leaf[member], without_key(states))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            got,
            without_key(separate[member][1]),
        )
        np.testing.assert_allclose(metrics.loss[member], separate[member][2].loss, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[SEEDS], b, atol=1e-6),
        states.agent.params,
        separate[0][0].agent.params,
    )


def test_the_position_in_the_ring_is_not_batched_when_seeds_are_vmapped(cartpole):
    """With a batched position the write of a row becomes a scatter over the entire ring."""
    config, trainer = cartpole
    run = train(config)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), SEEDS))
    axes = jax.tree.map(lambda _: 0, jax.eval_shape(trainer.init, jax.random.key(0)))
    shared = axes._replace(replay=axes.replay._replace(position=None, size=None))
    states, _ = jax.eval_shape(jax.vmap(run, out_axes=(shared, 0)), keys)
    assert states.replay.position.shape == states.replay.size.shape == ()
    batched = axes._replace(replay=axes.replay._replace(count=None))
    with pytest.raises(ValueError, match="out_axes"):  # the check above can fail
        jax.eval_shape(jax.vmap(run, out_axes=(batched, 0)), keys)


LARGE_AND_SMALL = (1_000_000, 10_000)
RINGS = {
    "CartPole": {"env": "CartPole-v1"},
    "Catch": {"env": "Catch-bsuite"},
    "Catch, prioritised": {"env": "Catch-bsuite", "replay": "prioritized", "frame_stack": 2},
    "Catch, 3 steps, 4 frames": {"env": "Catch-bsuite", "n_step": 3, "frame_stack": 4},
}


QUICK_RINGS = ("CartPole",)


def memory_of_chunk(config, chunk_of=lambda trainer: trainer.chunk(3)):
    """Compile a donated chunk for shapes alone; return its memory and the ring's bytes."""
    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    chunk = jax.jit(chunk_of(trainer), donate_argnums=0)
    memory = chunk.lower(state).compile().memory_analysis()
    return memory, tree_bytes(state.replay.storage)


def ring_config(capacity, **overrides):
    values = {"num_envs": 8, "replay_capacity": capacity, "network": "mlp"}
    return tiny(rollout_length=1, gradient_steps=1, **{**values, **overrides})


@pytest.mark.parametrize(
    "ring",
    [pytest.param(ring, marks=[pytest.mark.slow] * (ring not in QUICK_RINGS)) for ring in RINGS],
)
def test_an_iteration_of_one_step_never_copies_the_ring(ring):
    temporary = []
    for capacity in LARGE_AND_SMALL:
        memory, ring_bytes = memory_of_chunk(ring_config(capacity, **RINGS[ring]))
        assert memory.alias_size_in_bytes >= ring_bytes
        temporary.append(memory.temp_size_in_bytes)
    assert ring_bytes > 10_000 * 7
    assert temporary[0] <= temporary[1] + 1024


@pytest.mark.slow
def test_a_step_that_copies_the_ring_is_detected():
    def copying(trainer):
        def step(state, _):
            after, metrics = trainer.step(state)
            finite = jnp.isfinite(metrics.loss)
            storage = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                after.replay.storage,
                state.replay.storage,
            )
            return after._replace(replay=after.replay._replace(storage=storage)), metrics

        return lambda state: jax.lax.scan(step, state, None, length=3)

    memory, ring_bytes = memory_of_chunk(ring_config(LARGE_AND_SMALL[0]), copying)
    assert memory.temp_size_in_bytes > ring_bytes / 2


COUNTED = 24
CYCLE = (1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def counted():
    """Run with known counts: synchronous episodes of 3 steps and a reset in all environments.

    E = 4, K = 2, and M = 3 from the replay ratio; epsilon falls over 100 rows.
    """
    config = tiny(
        rollout_length=2,
        replay_ratio=3.0,
        warmup_rows=33,
        target_period=7,
        epsilon_start=0.9,
        epsilon_end=0.1,
        epsilon_decay_rows=100,
        learning_rate=0.01,
    )
    trainer = make_trainer(config, environment=cycle(CYCLE, limit=3))
    return config, *watched_run(trainer, COUNTED, lambda state: (state.agent, state.counters))


def test_warm_up_counts_its_rows_and_takes_no_gradient_steps(counted):
    _, start, _, _, _ = counted
    # 33 rows, rounded up to 5 iterations of 8 rows: 10 rows in each of 4 environments.
    assert counter_int(start.counters.rows) == 40
    assert counter_int(start.counters.env_steps) == 4 * 8  # rows 3 and 7 of the ten are resets
    assert counter_int(start.counters.gradient_steps) == 0
    assert int(start.replay.size) == 10
    assert_identical(start.agent.params, start.agent.target_params)


def test_counters_and_metrics_equal_a_hand_count_without_the_resets(counted):
    _, start, end, metrics, _ = counted
    # Of rows 0, 1, 2, 3 of a cycle the third ends an episode and the fourth resets.
    rows = np.arange(10, 10 + 2 * COUNTED).reshape(COUNTED, 2)
    np.testing.assert_array_equal(metrics.rows, 8)
    np.testing.assert_array_equal(metrics.gradient_steps, 3)
    np.testing.assert_array_equal(metrics.env_steps, 4 * np.sum(rows % 4 != 3, axis=1))
    np.testing.assert_array_equal(metrics.episodes, 4 * np.sum(rows % 4 == 2, axis=1))
    np.testing.assert_array_equal(metrics.length_sum, 3 * np.asarray(metrics.episodes))
    assert counter_int(end.counters.rows) == 40 + 8 * COUNTED
    steps = counter_int(start.counters.env_steps) + int(metrics.env_steps.sum())
    assert counter_int(end.counters.env_steps) == steps == (40 + 8 * COUNTED) * 3 // 4 + 2
    assert counter_int(end.counters.gradient_steps) == 3 * COUNTED
    for name in ("rows", "env_steps", "gradient_steps", "episodes"):
        assert getattr(metrics, name).dtype == jnp.int32


def test_returns_are_of_complete_episodes_for_any_actions(counted):
    _, _, end, metrics, _ = counted
    first, ends, action, reward, _ = rows_of(end)
    paid = np.asarray([*CYCLE, 0.0])[np.arange(len(first)) % 4]
    # Action 1 pays one less; the reset row (the fourth) pays nothing.
    resets = (np.arange(len(first)) % 4 == 3)[:, None]
    np.testing.assert_array_equal(reward, np.where(resets, 0, paid[:, None] - action))
    assert ends.sum() == 4 * sum(row % 4 == 2 for row in range(len(first)))
    starts = [row for row in range(0, len(first) - 2, 4) if row + 2 >= 10]
    total = sum(reward[row : row + 3].sum() for row in starts)
    np.testing.assert_allclose(metrics.return_sum.sum(), total, rtol=1e-6)


def test_the_rows_of_all_iterations_form_one_continuous_stream(counted):
    _, _, end, _, _ = counted
    first, _, _, _, obs = rows_of(end)
    time = np.arange(len(first))
    np.testing.assert_array_equal(first, np.broadcast_to((time % 4 == 0)[:, None], first.shape))
    # States 0, 1, 2, and 0 again: the final observation, after the third step.
    position = np.asarray([0, 1, 2, 0])[time % 4]
    np.testing.assert_array_equal(obs, np.broadcast_to(np.eye(3)[position][:, None], obs.shape))


def test_epsilon_follows_its_schedule_in_rows_after_the_warm_up(counted):
    _, _, _, metrics, _ = counted
    # The vector steps of an iteration are 4 rows apart, the iterations 8.
    rows = 8 * np.arange(COUNTED)[:, None] + [0, 4]
    expected = 0.9 - 0.8 * np.minimum(rows / 100, 1)
    np.testing.assert_allclose(metrics.epsilon, expected.mean(axis=1), rtol=1e-5)


def test_a_replay_ratio_sets_the_gradient_steps_of_an_iteration(counted):
    config, _, end, _, (agent, counters) = counted
    assert config.gradient_steps_per_iteration == 3
    np.testing.assert_array_equal(counters.gradient_steps.low, 3 * np.arange(1, COUNTED + 1))
    learned = counter_int(end.counters.gradient_steps) * config.batch_size
    assert learned / (counter_int(end.counters.rows) - 40) == config.replay_ratio
    assert agent.since_target.shape == (COUNTED,)


def test_the_target_is_replaced_on_time_if_the_period_is_not_a_multiple_of_m(counted):
    _, start, _, _, (agent, _) = counted

    def flat(tree, length):
        leaves = [np.asarray(leaf).reshape(length, -1) for leaf in jax.tree.leaves(tree)]
        return np.concatenate(leaves, axis=1)

    online, target = flat(agent.params, COUNTED), flat(agent.target_params, COUNTED)
    before, replacements = flat(start.agent.params, 1)[0], 0
    for iteration in range(COUNTED):
        steps = 3 * (iteration + 1)
        assert int(agent.since_target[iteration]) == steps % 7
        if steps // 7 > (steps - 3) // 7:
            replacements += 1
            assert np.abs(target[iteration] - before).max() > 0
            replaced_last = steps % 7 == 0
            assert np.array_equal(target[iteration], online[iteration]) == replaced_last
        else:
            np.testing.assert_array_equal(target[iteration], before)
        before = target[iteration]
    assert replacements == 3 * COUNTED // 7 == 10


def test_reported_returns_and_lengths_equal_those_of_a_slow_recount():
    config = tiny(replay_capacity=2048, rollout_length=2)
    trainer = make_trainer(config, environment=noisy())
    _, end, metrics, _ = watched_run(trainer, 200)
    first, ends, _, reward, _ = rows_of(end)
    warmup = config.warmup_rows // config.num_envs
    returns, lengths, resets = [], [], 0
    for env in range(config.num_envs):
        total, length = 0.0, 0
        for time in range(len(first)):
            following = end.actor.timestep.first if time + 1 == len(first) else first[time + 1]
            if following[env]:
                assert reward[time, env] == 0
                resets += time >= warmup
                continue
            total, length = total + float(reward[time, env]), length + 1
            if ends[time, env]:
                if time >= warmup:  # the metrics of the warm-up are not reported
                    returns.append(total)
                    lengths.append(length)
                total, length = 0.0, 0
        np.testing.assert_allclose(end.actor.episode.episode_return[env], total, atol=1e-5)
        assert int(end.actor.episode.episode_length[env]) == length
    assert len(set(lengths)) == 6
    assert int(metrics.episodes.sum()) == len(returns)
    assert float(metrics.length_sum.sum()) == sum(lengths)
    np.testing.assert_allclose(metrics.return_sum.sum(), sum(returns), rtol=1e-4)
    assert int(metrics.env_steps.sum()) == int(metrics.rows.sum()) - resets


def frozen(q_of_obs):
    """Return a network of fixed values, whose only parameter gets no gradient."""

    def apply(params, key, carry, obs, first):
        return QOutput(q_values=q_of_obs(obs) + 0.0 * params["nothing"]), carry

    return Network(
        init=lambda key, obs: {"nothing": jnp.zeros((1, 1))},
        apply=apply,
        initial_carry=lambda batch_size: (),
    )


def test_warm_up_is_random_and_a_ladder_gives_each_environment_its_own_epsilon():
    config = tiny(
        warmup_rows=1600,
        rollout_length=8,
        replay_capacity=8192,
        total_rows=10_000,
        epsilon_schedule="constant",
        epsilon_end=0.4,
        epsilon_ladder=7.0,
    )
    prefers_0 = frozen(lambda obs: jnp.broadcast_to(jnp.asarray([1.0, 0.0]), (obs.shape[0], 2)))
    trainer = make_trainer(config, environment=cycle((1.0,), limit=9), network=prefers_0)
    _, end, metrics, _ = watched_run(trainer, 100)
    ladder = 0.4 ** (1 + 7 * np.arange(4) / 3)
    np.testing.assert_allclose(metrics.epsilon, ladder.mean(), rtol=1e-5)
    action = rows_of(end)[2]
    assert action.shape == (1200, 4)
    # 400 coins in the warm-up: 200 +- 10. Then 800, and half of the random actions are 0.
    assert (np.abs(action[:400].sum(axis=0) - 200) < 45).all()
    expected = 800 * ladder / 2  # 160, 18.9, 2.2, 0.26
    others = action[400:].sum(axis=0)
    assert (np.abs(others - expected) < 4.5 * np.sqrt(expected) + 1).all(), others


def test_acting_sees_the_same_stacks_as_the_replay_gathers():
    """The action is a hash of the stack, so a different stack gives a different action."""
    frames, num_actions = 3, 16
    multipliers = jnp.asarray([[1.0, 3.0], [5.0, 7.0], [11.0, 13.0]])  # [S, O]

    def hash_of(stack):  # [B, O, S] -> [B]
        mixed = jnp.einsum("bos,so->b", stack, multipliers)
        return mixed.astype(jnp.int32) % num_actions

    config = tiny(
        frame_stack=frames,
        n_step=2,
        rollout_length=2,
        replay_capacity=128,
        batch_size=32,
        epsilon_schedule="constant",
        epsilon_end=0.0,
    )
    network = frozen(lambda stack: jax.nn.one_hot(hash_of(stack), num_actions))
    trainer = make_trainer(config, environment=noisy(num_actions=num_actions), network=network)
    # Enough iterations to overwrite every row of the warm-up.
    _, end, _, _ = watched_run(trainer, 30)
    assert int(end.replay.size) == 32
    sample = make_replay(dataclasses.replace(config, batch_size=32)).sample
    keys = jax.random.split(jax.random.key(5), 20)
    batch, _ = jax.jit(jax.vmap(sample, (0, None, None)))(keys, end.replay, jnp.float32(0.9))
    stacks = batch.obs_tm1.reshape(-1, 2, frames)
    np.testing.assert_array_equal(hash_of(stacks), batch.a_tm1.ravel())
    padded = np.sum(np.all(np.asarray(stacks) == 0, axis=1), axis=1)
    assert set(padded) == {0, 1, 2}  # some stacks are from the start of an episode
    wrong = np.asarray(hash_of(stacks[:, :, ::-1])) == batch.a_tm1.ravel()
    assert wrong.mean() < 0.5  # the hash distinguishes stacks


class CustomNetwork(nn.Module):
    """Custom network without hidden layers."""

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2, use_bias=False)(obs)


def test_a_custom_network_and_optimizer_are_trained():
    trainer = make_trainer(
        tiny(),
        environment=cycle((1.0, 2.0), limit=3),
        network=CustomNetwork(),
        optimizer=lambda hyper: optax.sgd(hyper.learning_rate, momentum=0.9),
    )
    start, end, metrics, _ = watched_run(trainer, 20)
    shapes = jax.tree.map(jnp.shape, end.agent.params)
    assert shapes == {"params": {"Dense_0": {"kernel": (2, 2)}}}
    assert jax.tree.structure(end.agent.opt_state) == jax.tree.structure(
        optax.sgd(0.1, momentum=0.9).init(end.agent.params)
    )
    assert np.isfinite(metrics.loss).all()
    before, after = (state.agent.params["params"]["Dense_0"]["kernel"] for state in (start, end))
    assert (before != after).all()


def test_metrics_are_added_up_or_averaged_by_name():
    names = [name for name in Metrics._fields if name != "first_skipped"]
    leaves = {
        name: jnp.asarray([1, 2, 6], jnp.int32 if name in SUMMED_METRICS[:4] else jnp.float32)
        for name in names
    }
    reduced = reduce_metrics(Metrics(**leaves, first_skipped=jnp.int32([0, 0, 0])))
    for name in names:
        assert getattr(reduced, name) == (9 if name in SUMMED_METRICS else 3)
        assert getattr(reduced, name).dtype == leaves[name].dtype
    assert set(names) - set(SUMMED_METRICS) == {"loss", "grad_norm", "q_mean", "epsilon"}


def test_hyper_parameters_equal_the_fields_of_the_configuration():
    config = Config(clip_norm=5.0, gamma=0.5, target_tau=0.25)
    for name, value in hyper_from(config)._asdict().items():
        assert value.dtype == jnp.float32
        assert value.shape == ()
        expected = getattr(config, name)
        assert float(value) == pytest.approx(np.inf if expected is None else expected)


def test_several_devices_without_collectives_are_rejected():
    message = (
        r"^devices=2: must give collectives\.size=1 replicas, not 2; .*device_collectives\(2\)"
        r".*across_devices.*run\.run"
    )
    for make in (make_trainer, train):
        with pytest.raises(ValueError, match=message):
            make(tiny(devices=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 4}, "num_seeds=4: must be 1"),
        ({"sweep": ("gamma=0.9,0.99",)}, r"sweep=.*: must be \(\)"),
    ],
)
def test_train_rejects_several_learners(changes, message):
    with pytest.raises(ValueError, match=f"^{message}.*vmap it over keys.*population.*run"):
        train(tiny(**changes))


LONG = 2**33


@pytest.mark.parametrize(
    "overrides",
    [
        {"epsilon_decay_rows": 2**32},
        {"epsilon_decay_rows": 2**32, "epsilon_schedule": "exponential"},
        {"learning_rate_schedule": "linear"},
        {"learning_rate_schedule": "cosine"},
        {"target_period": 2**32},
        {"log_every": 2**32},
    ],
)
def test_a_run_of_more_than_2_to_the_32_rows_can_be_traced_or_is_rejected(overrides):
    try:
        config = tiny(total_rows=LONG, gradient_steps=8, **overrides)
    except ValueError as error:
        name = next(iter(overrides))
        assert str(error).startswith(f"{name}={overrides[name]}: must be")  # noqa: PT017
        return
    trainer = make_trainer(config, environment=cycle((1.0,), limit=3))
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    jax.eval_shape(trainer.step, state)
    assert config.iterations_per_chunk * config.rows_per_iteration < 2**31  # metrics are int32
