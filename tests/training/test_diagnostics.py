"""Diagnostics of gradient steps: their values, and that they change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.optimizer import make_clipped_norm
from jaxdqn.monitoring.records import chunk_record
from jaxdqn.replay import make_prioritized, make_sequence, make_uniform
from jaxdqn.run.chunks import add_parts, metrics_of
from jaxdqn.training import diagnostics
from jaxdqn.training.diagnostics import (
    ABS_TD_EDGES,
    Q_EDGES,
    _of_sample,
    _shares,
    _target_gap,
    bin_limits,
    quantile,
)
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import AgentState, Row
from tests.toys import masked, noisy, quick_jit, tiny

ENVS = 2


def filled(replay, steps):
    """Return a replay of rows whose reward is the number of the vector step."""
    no = jnp.bool_(False)
    state = replay.init(Row(jnp.float32(0), no, jnp.int32(0), jnp.float32(0), no, no))
    add = jax.jit(replay.add)
    for step in range(steps):
        flags = jnp.zeros((1, ENVS), jnp.bool_)
        time = jnp.full((1, ENVS), step, jnp.float32)
        state = add(state, Row(time, flags, flags.astype(jnp.int32), time, flags, flags))
    return state


SIZES = {"num_envs": ENVS, "rows_per_env": 16, "rows_per_add": 1, "batch_size": 32}
REPLAYS = {
    "uniform": (lambda: make_uniform(**SIZES), {}),
    "prioritized": (lambda: make_prioritized(**SIZES), {"replay": "prioritized"}),
    "sequences": (
        lambda: make_sequence(**SIZES, length=4, stride=3),
        {"recurrent": "lstm", "sequence_length": 3, "burn_in": 0, "sequence_stride": 3},
    ),
}


@pytest.mark.parametrize("steps", [11, 40])
@pytest.mark.parametrize("name", REPLAYS)
def test_the_age_of_drawn_rows_counts_rows_since_they_were_written(name, steps):
    make, options = REPLAYS[name]
    replay, config = make(), tiny(num_envs=ENVS, batch_size=32, **options)
    state = filled(replay, steps)
    batch, sample = replay.sample(jax.random.key(1), state, jnp.float32(0.9))
    written = batch.reward[:, 0] if name == "sequences" else batch.r_t
    found = _of_sample(config, state, sample, jnp.ones(32))
    expected = np.mean(steps - 1 - np.asarray(written)) * ENVS
    np.testing.assert_allclose(found["sample_age"], expected, rtol=1e-6)
    assert found["replay_fill"] == min(steps, 16) / 16


def test_the_effective_sample_size_of_unequal_weights_is_below_their_number():
    replay = make_prioritized(**SIZES)
    config, state = tiny(num_envs=ENVS, replay="prioritized"), filled(replay, 20)
    _, sample = replay.sample(jax.random.key(0), state, jnp.float32(0.9))
    found = _of_sample(config, state, sample, jnp.asarray([1.0, 0.5], jnp.float32))
    np.testing.assert_allclose(found["effective_sample_size"], 1.5**2 / 1.25)
    assert found["weight_mean"] == 0.75


def test_a_histogram_holds_the_share_of_the_counted_values():
    values = jnp.asarray([[0.5, 1.5], [3.0, 7.0]], jnp.float32)
    counted = jnp.asarray([[True, True], [True, False]])
    np.testing.assert_allclose(_shares(values, counted, (1.0, 2.0)), [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(_shares(values, counted & False, (1.0, 2.0)), [0, 0, 0])
    assert np.all(np.diff(Q_EDGES) > 0)
    assert np.all(np.diff(ABS_TD_EDGES) > 0)


def test_a_quantile_of_a_histogram_is_the_upper_limit_of_its_bin():
    shares = np.zeros(len(ABS_TD_EDGES) + 1)
    shares[[0, 17]] = 0.25, 0.75
    assert bin_limits("abs_td_histogram")[16] == pytest.approx(1.0)
    assert quantile(shares.tolist(), "abs_td_histogram", 0.2) == pytest.approx(1e-4)
    assert quantile(shares.tolist(), "abs_td_histogram", 0.5) == pytest.approx(10**0.25)
    assert np.isnan(quantile([0.0] * len(shares), "abs_td_histogram", 0.5))


def test_the_gap_to_the_target_network_is_relative_to_the_parameters():
    params, target = {"w": jnp.asarray([3.0, 4.0])}, {"w": jnp.asarray([3.0, 3.0])}
    state = AgentState(params, target, (), jnp.int32(0))
    np.testing.assert_allclose(_target_gap(state)["target_gap"], 1 / 5)
    assert _target_gap(state._replace(target_params=())) == {}


def test_the_gradient_norm_after_clipping_is_that_of_both_clippings():
    config = tiny(clip_value=1.0, clip_norm=1.5)
    grads = {"w": jnp.asarray([5.0, -0.5]), "b": jnp.asarray([2.0])}
    measured = make_clipped_norm(config)(grads, hyper_from(config))
    # By value: (1, -0.5, 1), of norm 1.5.
    np.testing.assert_allclose(measured["grad_norm_clipped"], 1.5, rtol=1e-6)
    config = tiny(clip_norm=1.0)
    np.testing.assert_allclose(
        make_clipped_norm(config)(grads, hyper_from(config))["grad_norm_clipped"], 1.0, rtol=1e-6
    )


def chunk_text(config):
    trainer = make_trainer(config, environment=noisy())
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    return jax.jit(trainer.chunk(2)).lower(state).as_text()


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_without_diagnostics_the_program_of_a_chunk_contains_none(replay, monkeypatch):
    config = tiny(replay=replay, clip_norm=1.0)
    with_module, diagnosed = chunk_text(config), chunk_text(tiny(replay=replay, clip_norm=1.0,
                                                                 diagnostics=True))  # fmt: skip
    keep = lambda config, agent: lambda state, batch, info, weights, sample: info  # noqa: E731
    monkeypatch.setattr("jaxdqn.training.dqn.make_diagnostics", keep)
    monkeypatch.setattr("jaxdqn.training.algorithms.make_clipped_norm", lambda *parts: None)
    for name in ("_shares", "_of_sample", "_target_gap", "_q_values"):
        monkeypatch.setattr(diagnostics, name, lambda *arguments: 1 / 0)
    assert chunk_text(config) == with_module
    assert diagnosed != with_module


CASES = {
    "prioritized": {"replay": "prioritized", "clip_norm": 0.5},
    "masks": {},
    "pqn": {"algorithm": "pqn", "rollout_length": 4, "minibatches": 2,
            "batch_size": 128, "replay_capacity": 100_000, "warmup_rows": 1_000},
    "r2d2": {"recurrent": "lstm", "sequence_length": 4, "burn_in": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_with_diagnostics_learns_the_same(name):
    environment = masked() if name == "masks" else noisy()
    options = dict(CASES[name])
    if name == "pqn":
        from jaxdqn.config.config import Config

        options |= {field: getattr(Config(), field)
                    for field in ("batch_size", "replay_capacity", "warmup_rows")}  # fmt: skip
    ends = []
    for on in (False, True):
        trainer = make_trainer(tiny(**options, diagnostics=on), environment=environment)
        early = quick_jit(lambda key, trainer=trainer: trainer.chunk(5)(trainer.init(key))[0])(
            jax.random.key(0)
        )
        ends.append((early, *quick_jit(trainer.chunk(15))(early)))
    # Two programs round differently, and the differences grow with every gradient step.
    (plain_early, plain, _), (early, state, metrics) = ends
    for one, other, rtol in ((plain_early, early, 1e-5), (plain, state, 1e-4)):
        for a, b in zip(jax.tree.leaves(one.agent.params), jax.tree.leaves(other.agent.params),
                        strict=True):  # fmt: skip
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 10)
    record = chunk_record(jax.device_get(metrics), 1.0)
    for histogram in ("q_histogram", "abs_td_histogram"):
        np.testing.assert_allclose(sum(record[histogram]), 1.0, rtol=1e-5)
    assert record["q_max"] >= record["q_mean"] - 0.5  # drawn from the same batches
    assert record["q_max"] < 1e6  # of legal actions only
    assert ("target_gap" in record) == (name != "pqn")
    assert ("sample_age" in record) == (name != "pqn")
    if name == "prioritized":
        assert 1.0 <= record["effective_sample_size"] <= 8.0
        assert record["grad_norm_clipped"] <= min(0.5, record["grad_norm"]) * 1.0001


def test_parts_of_a_chunk_are_merged_by_their_iterations():
    trainer = make_trainer(tiny(diagnostics=True), environment=noisy())
    shapes = jax.eval_shape(trainer.chunk(1), jax.eval_shape(trainer.init, jax.random.key(0)))[1]

    def part(iterations, value):
        metrics = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)
        plain = jax.tree.map(lambda leaf: leaf.tolist(), metrics._asdict())
        return {"iterations": iterations, "seconds": 1.0, "metrics": plain}

    merged = metrics_of(add_parts(part(1, 1), part(3, 5))["metrics"])
    assert merged.diagnostics["q_max"] == 4.0
    np.testing.assert_array_equal(merged.diagnostics["q_histogram"], np.full(len(Q_EDGES) + 1, 4.0))
    off = part(3, 5)
    off["metrics"]["diagnostics"] = ()
    assert metrics_of(add_parts(part(1, 1), off)["metrics"]).diagnostics == {}


@pytest.mark.slow
def test_each_learner_of_a_population_has_its_diagnostics():
    from jaxdqn.parallel.population import population

    trainer = population(make_trainer(tiny(diagnostics=True), environment=noisy()), 2)
    state = quick_jit(trainer.init)(jax.random.split(jax.random.key(0), 2))
    _, metrics = quick_jit(trainer.chunk(5))(state)
    record = chunk_record(jax.device_get(metrics), 1.0)
    assert len(record["learners"]["q_histogram"]) == 2
    mean = np.mean(record["learners"]["target_gap"])
    np.testing.assert_allclose(record["target_gap"], mean, rtol=1e-6)
