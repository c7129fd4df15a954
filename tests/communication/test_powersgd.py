"""Low-rank means against a NumPy twin, and the properties of error feedback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdqn.communication.collectives import DEVICE_AXIS, identity_collectives
from jaxdqn.communication.compression import ResidualState
from jaxdqn.communication.powersgd import orthogonalize, powersgd_floats, powersgd_mean
from jaxdqn.config.config import replace
from jaxdqn.parallel import device_collectives
from tests.communication.test_cost import learning, sent
from tests.toys import quick_jit, tiny

SHAPES = {"bias": (7,), "kernel": (3, 3, 2, 9), "matrix": (20, 12), "narrow": (20, 2)}
"""``narrow`` has no more elements than its factors of rank 2, and is averaged as it is."""
RANK = 2


def gradients_of(devices, seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(devices, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def mean_over(devices, rank=RANK):
    """Return ``step(gradients[D, ...], state[D, ...]) -> (means, state)`` and its first state."""
    link = powersgd_mean(device_collectives(devices), rank)

    def body(gradients, state):
        mine, residuals = jax.tree.map(lambda leaf: leaf[0], (gradients, state))
        return jax.tree.map(lambda leaf: leaf[None], link.update(mine, residuals))

    split = PartitionSpec(DEVICE_AXIS)
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (DEVICE_AXIS,))
    step = jax.shard_map(body, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    first = link.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    return quick_jit(step), jax.tree.map(lambda leaf: jnp.stack([leaf] * devices), first)


def twin(gradients, residual, start):
    """Average matrices [D, n, m] as algorithm 1 of the paper, with a QR decomposition."""
    to_send = gradients + residual
    basis, _ = np.linalg.qr((to_send @ start).mean(axis=0))
    rows = np.mean([matrix.T @ basis for matrix in to_send], axis=0)
    mean = basis @ rows.T
    return mean, to_send - mean, rows


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_means_are_those_of_the_twin(devices):
    step, state = mean_over(devices)
    matrices = ("kernel", "matrix")  # in the order of the leaves
    starts = [
        np.asarray(jax.random.normal(jax.random.key(i), (SHAPES[name][-1], RANK)))
        for i, name in enumerate(matrices)
    ]
    residuals = [np.zeros((devices, 18, 9)), np.zeros((devices, 20, 12))]
    for seed in range(3):
        gradients = gradients_of(devices, seed)
        means, state = step(gradients, state)
        for i, name in enumerate(matrices):
            flat = gradients[name].reshape(devices, -1, SHAPES[name][-1])
            mean, residuals[i], starts[i] = twin(flat, residuals[i], starts[i])
            for device in range(devices):
                ours = np.asarray(means[name][device]).reshape(mean.shape)
                np.testing.assert_allclose(ours, mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(state.residual[0][i], residuals[i], rtol=1e-3, atol=1e-4)
        for name in ("bias", "narrow"):
            expected = gradients[name].mean(axis=0)
            np.testing.assert_allclose(means[name][0], expected, rtol=1e-5, atol=1e-6)
    for leaf in jax.tree.leaves((means, state.residual[1])):
        assert (np.asarray(leaf) == np.asarray(leaf)[:1]).all()  # bitwise equal replicas


def test_the_sum_of_the_means_is_the_true_sum_less_the_mean_residual():
    devices = 2
    step, state = mean_over(devices)
    total, true = np.zeros(SHAPES["matrix"]), np.zeros(SHAPES["matrix"])
    for seed in range(6):
        gradients = gradients_of(devices, seed)
        means, state = step(gradients, state)
        total, true = total + means["matrix"][0], true + gradients["matrix"].mean(axis=0)
    residual = np.asarray(state.residual[0][1]).mean(axis=0)
    np.testing.assert_allclose(total + residual, true, atol=1e-4)
    assert np.abs(residual).max() > 0.1  # something was left out


def test_a_matrix_of_the_rank_is_averaged_exactly():
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(20, RANK)) @ rng.normal(size=(RANK, 12))).astype(np.float32)
    link = powersgd_mean(identity_collectives, RANK)
    mean, state = quick_jit(link.update)({"w": matrix}, link.init({"w": jnp.zeros((20, 12))}))
    np.testing.assert_allclose(mean["w"], matrix, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state.residual[0][0], 0.0, atol=1e-4)


def test_a_zero_gradient_and_a_reset_state_give_finite_means():
    link = powersgd_mean(identity_collectives, RANK)
    state = link.init({"w": jnp.zeros((20, 12))})
    mean, state = quick_jit(link.update)({"w": jnp.zeros((20, 12))}, state)
    np.testing.assert_array_equal(mean["w"], np.zeros((20, 12)))
    mean, _ = quick_jit(link.update)({"w": jnp.ones((20, 12))}, state)
    np.testing.assert_allclose(mean["w"], 1.0, rtol=1e-5)


def test_a_column_that_was_lost_once_comes_back():
    link = powersgd_mean(identity_collectives, RANK)
    update, state = quick_jit(link.update), link.init({"w": jnp.zeros((20, 12))})
    _, state = update({"w": jnp.ones((20, 12))}, state)  # of rank 1
    assert not np.asarray(state.residual[1][0])[:, 1].any()
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(20, RANK)) @ rng.normal(size=(RANK, 12))).astype(np.float32)
    mean, state = update({"w": matrix}, state)
    np.testing.assert_allclose(mean["w"], matrix, rtol=1e-3, atol=1e-3)
    assert np.asarray(state.residual[1][0]).any(axis=0).all()


def test_a_value_that_is_not_finite_reaches_the_mean():
    link = powersgd_mean(identity_collectives, RANK)
    state = link.init({"w": jnp.zeros((20, 12))})
    mean, state = quick_jit(link.update)({"w": jnp.full((20, 12), jnp.nan)}, state)
    assert isinstance(state, ResidualState)
    assert np.isnan(mean["w"]).all()


def test_columns_become_orthonormal_and_a_dependent_one_zero():
    columns = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    columns[:, 2] = 2 * columns[:, 0] - columns[:, 1]
    basis = np.asarray(orthogonalize(jnp.asarray(columns)))
    np.testing.assert_allclose(basis.T @ basis, np.diag([1, 1, 0, 1]), atol=1e-5)
    np.testing.assert_allclose(basis @ (basis.T @ columns), columns, atol=1e-4)


def test_the_number_of_floats_by_hand():
    # bias 7; kernel 18 x 9: 2 (18 + 9) = 54; matrix: 2 (20 + 12) = 64; narrow: 40 as it is.
    assert powersgd_floats(list(SHAPES.values()), RANK) == 7 + 54 + 64 + 40
    with pytest.raises(ValueError, match="rank=0: must be at least 1"):
        powersgd_mean(identity_collectives, 0)


@pytest.mark.parametrize("devices", [2, 4])
def test_a_gradient_step_sends_the_predicted_bytes(devices):
    found, predicted = learning(devices=devices, compression="powersgd", powersgd_rank=RANK)
    assert sent(found) == predicted.total > 0
    assert {(each.op, each.dtype) for each in found} == {("all-reduce", "f32")}
    assert len(found) == 2
    assert predicted.total < 0.1 * learning(devices=devices)[1].total


def test_the_rank_without_powersgd_is_rejected():
    with pytest.raises(ValueError, match="powersgd_rank=4: must be 2 unless"):
        replace(tiny(), devices=2, compression="int8", powersgd_rank=4)
