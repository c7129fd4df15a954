"""The trainer: bitwise identical runs, custom parts, metrics and rejected configurations."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.config.config import Config
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.metrics import reduce_metrics
from jaxdqn.training.trainer import make_trainer, train
from jaxdqn.types import SUMMED_METRICS, Metrics
from tests.toys import assert_identical, bitwise_jit, cycle, quick_jit, tiny, watched_run

SEEDS = 5


@pytest.fixture(scope="module")
def cartpole():
    """Return the configuration of a short CartPole run: 10 iterations in 2 chunks."""
    config = tiny(total_rows=32 + 4 * 10, log_every=20, gradient_steps=2, learning_rate=0.01)
    assert (config.num_chunks, config.iterations_per_chunk) == (2, 5)
    return config, make_trainer(config)


@pytest.fixture(scope="module")
def runs(cartpole):
    """Run five seeds one after the other; return their keys, their runs, and ``run(key)``.

    A run is the first state, the last, and the metrics [chunks].
    """
    trainer = cartpole[1]
    init, chunk = quick_jit(trainer.init), bitwise_jit(trainer.chunk(5))

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
    step = bitwise_jit(cartpole[1].step)
    state, end, scanned = separate[0]
    metrics = []
    for _ in range(10):
        state, step_metrics = step(state)
        metrics.append(step_metrics)
    assert_identical(state, end)
    for chunk in range(2):
        part = metrics[5 * chunk : 5 * chunk + 5]
        reduced = reduce_metrics(jax.tree.map(lambda *leaves: jnp.stack(leaves), *part))
        one_chunk = jax.tree.map(lambda leaf, chunk=chunk: leaf[chunk], scanned)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), one_chunk, reduced)


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


@pytest.mark.slow
def test_an_optimizer_that_lowers_the_rate_on_a_plateau_is_given_the_loss():
    def plateau(hyper):
        return optax.chain(
            optax.sgd(hyper.learning_rate),
            optax.contrib.reduce_on_plateau(patience=1, cooldown=0, factor=0.5, rtol=0.999),
        )

    trainer = make_trainer(tiny(), environment=cycle((1.0, 2.0), limit=3), optimizer=plateau)
    with jax.numpy_dtype_promotion("standard"):
        state = quick_jit(trainer.init)(jax.random.key(0))
        state, _ = quick_jit(trainer.chunk(3))(state)
    plateau_state = state.agent.opt_state[1]
    assert 0 < plateau_state.best_value < np.inf
    assert plateau_state.scale == 0.25  # the second and the third loss are no improvement


def test_metrics_are_added_up_or_averaged_by_name():
    special = ("first_skipped", "extra", "diagnostics")
    names = [name for name in Metrics._fields if name not in special]
    leaves = {
        name: jnp.asarray([1, 2, 6], jnp.int32 if name in SUMMED_METRICS[:4] else jnp.float32)
        for name in names
    }
    reduced = reduce_metrics(
        Metrics(**leaves, first_skipped=jnp.int32([0, 0, 0]), extra={"own": jnp.float32([1, 2, 6])})
    )
    for name in names:
        assert getattr(reduced, name) == (9 if name in SUMMED_METRICS else 3)
        assert getattr(reduced, name).dtype == leaves[name].dtype
    assert set(names) - set(SUMMED_METRICS) == {"loss", "grad_norm", "q_mean", "epsilon"}
    assert reduced.extra == {"own": 3}


def test_hyper_parameters_equal_the_fields_of_the_configuration():
    config = Config(clip_norm=5.0, gamma=0.5, target_tau=0.25)
    values = hyper_from(config)._asdict()
    assert values.pop("extra") == {}
    for name, value in values.items():
        assert value.dtype == jnp.float32
        assert value.shape == ()
        expected = getattr(config, name)
        assert float(value) == pytest.approx(3.4e38 if expected is None else expected)


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
