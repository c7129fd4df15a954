"""Compressed means against a slow NumPy twin, and the properties of error feedback."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdqn.agent.optimizer import all_reduce, flush_tiny, make_optimizer, pack_small
from jaxdqn.communication.collectives import DEVICE_AXIS, identity_collectives
from jaxdqn.communication.compression import KINDS, ResidualState, compressed_mean, layout
from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.training.guard import not_finite
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.toys import noisy, quick_jit, tiny
from tests.training.test_guard import poisoned

FRACTION = 0.05
PARTS = {"small": (401,), "large": (40, 30)}
SIZE = 401 + 1200
"""Not a multiple of devices or blocks, so that slices and blocks are padded."""


def mean_over(kind, devices, shapes=PARTS, fraction=FRACTION):
    """Return ``step(gradients[D, ...], residuals[D, m]) -> (means[D, ...], residuals)``, and m."""
    return _mean_over(kind, devices, tuple(shapes.items()), fraction)


@cache
def _mean_over(kind, devices, shapes, fraction):
    link = compressed_mean(kind, device_collectives(devices), top_k_fraction=fraction)

    def body(gradients, residuals):
        mine = jax.tree.map(lambda leaf: leaf[0], gradients)
        mean, state = link.update(mine, ResidualState(residuals[0]))
        return jax.tree.map(lambda leaf: leaf[None], (mean, state.residual))

    split = PartitionSpec(DEVICE_AXIS)
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (DEVICE_AXIS,))
    step = jax.shard_map(body, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    zeros = {name: jnp.zeros(shape) for name, shape in shapes}
    return quick_jit(step), link.init(zeros).residual.size


def as_tree(flat):
    """Divide [D, n] into ``PARTS``, in the order in which the transformation flattens them."""
    large, small = flat[:, :1200], flat[:, 1200:]
    return {"small": jnp.asarray(small), "large": jnp.asarray(large.reshape(-1, 40, 30))}


def as_flat(tree):
    large = np.asarray(tree["large"])
    return np.concatenate([large.reshape(len(large), -1), np.asarray(tree["small"])], axis=1)


def random_gradients(devices, size=SIZE, seed=0):
    """Return elements whose magnitudes differ widely, as those of gradients do."""
    rng = np.random.default_rng(seed)
    spread = np.exp(2 * rng.normal(size=size))
    return (rng.normal(size=(devices, size)) * spread).astype(np.float32)


def through_bfloat16(values):
    return values.astype(jnp.bfloat16).astype(np.float32)


def through_int8(values, block):
    decoded = np.zeros_like(values)
    for start in range(0, len(values), block):
        part = values[start : start + block]
        scale = np.float32(np.abs(part).max() / np.float32(127))
        if scale > 0:
            decoded[start : start + block] = np.rint(part / scale) * scale
    return decoded


def twin_of_codes(kind, gradients, residuals):
    """Encode twice, device by device; return the mean and the new residuals."""
    devices, size = gradients.shape
    blocks = -(-size // (devices * 256)) if kind == "int8" else 1
    block = -(-size // (devices * blocks))
    length = blocks * block

    def through(values):
        return through_int8(values, block) if kind == "int8" else through_bfloat16(values)

    to_send = np.zeros((devices, devices * length), np.float32)
    to_send[:, :size] = gradients
    to_send += residuals
    mean, unsent = np.zeros(devices * length, np.float32), np.zeros_like(to_send)
    for owner in range(devices):
        part = slice(owner * length, (owner + 1) * length)
        received = np.stack([through(to_send[device, part]) for device in range(devices)])
        slice_mean = received.sum(axis=0) / np.float32(devices)
        mean[part] = through(slice_mean)
        unsent[:, part] = to_send[:, part] - received
        unsent[owner, part] += devices * (slice_mean - mean[part])
    return mean[:size], unsent


def twin_of_top_k(gradients, residuals, fraction=FRACTION):
    devices, size = gradients.shape
    k = max(1, int(np.ceil(fraction * size)))
    to_send = gradients + residuals
    mean, unsent = np.zeros(size, np.float32), to_send.copy()
    for device in range(devices):
        largest = np.argsort(-np.abs(to_send[device]), kind="stable")[:k]
        mean[largest] += to_send[device, largest]
        unsent[device, largest] = 0
    return mean / np.float32(devices), unsent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [2, 4])
def test_the_compressed_mean_equals_its_numpy_twin(kind, devices):
    step, size = mean_over(kind, devices)
    residuals = np.zeros((devices, size), np.float32)
    for number in range(4):
        gradients = random_gradients(devices, seed=number)
        mean, after = step(as_tree(gradients), residuals)
        if kind == "top_k":
            expected, unsent = twin_of_top_k(gradients, residuals)
        else:
            expected, unsent = twin_of_codes(kind, gradients, residuals)
        # The compiler may fuse a product and a sum, which are then rounded once.
        largest = np.abs(gradients).max()
        for replica in as_flat(mean):
            np.testing.assert_allclose(replica, expected, rtol=1e-6, atol=1e-7 * largest)
        np.testing.assert_allclose(after, unsent, rtol=1e-6, atol=1e-6 * largest)
        assert np.abs(unsent).max() > 1e-3 * largest
        residuals = np.asarray(after)


def bound_on_residual(kind, devices, gradients):
    """Return upper bounds of the elements and of the norm of a residual, at any step."""
    largest = np.abs(gradients).max()
    norm = np.linalg.norm(gradients, axis=-1).max()
    if kind == "top_k":
        # Karimireddy et al. 2019, lemma 3, for a code that keeps a share of the squared norm.
        return np.inf, 2 * np.sqrt(1 - FRACTION) / FRACTION * norm
    # e <= loss (g + e): the error of the device's code plus D times that of the mean's code.
    loss = (1 + devices) * (1 / 254 if kind == "int8" else 2**-8)
    return loss / (1 - loss) * largest, np.inf


@pytest.mark.parametrize("kind", KINDS)
def test_applied_means_add_up_to_the_true_means_less_a_bounded_residual(kind):
    devices, steps = 4, 300
    step, size = mean_over(kind, devices)
    residuals = jnp.zeros((devices, size), jnp.float32)
    rng = np.random.default_rng(1)
    constant = random_gradients(devices)
    gradients = constant * rng.choice([0.5, 1.0, 2.0], size=(steps, devices, 1)).astype(np.float32)
    elements, norm = bound_on_residual(kind, devices, gradients.reshape(-1, SIZE))
    applied, true = np.zeros(SIZE), np.zeros(SIZE)
    for number in range(steps):
        mean, residuals = step(as_tree(gradients[number]), residuals)
        applied += as_flat(mean)[0]
        true += gradients[number].mean(axis=0)
        assert np.abs(residuals).max() <= elements * 1.001
        assert np.linalg.norm(residuals, axis=1).max() <= norm * 1.001
        if number in (2, steps - 1):
            missing = np.asarray(residuals, np.float64)[:, :SIZE].mean(axis=0)
            scale = np.abs(gradients).max() * (number + 1)
            np.testing.assert_allclose(applied + missing, true, atol=2e-7 * scale)
    # Without error feedback the mean error would be that of a single step.
    mean, _ = step(as_tree(constant), jnp.zeros_like(residuals))
    one_step = np.linalg.norm(as_flat(mean)[0] - constant.mean(axis=0))
    mean_error = np.linalg.norm(applied - true) / steps
    assert one_step > 0
    assert mean_error < 0.2 * one_step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_element_reaches_every_replica(kind, value):
    step, size = mean_over(kind, 4, shapes={"a": (1000,)}, fraction=0.001)
    gradients = random_gradients(4, size=1000)
    gradients[2, 777] = value
    mean, _ = step({"a": jnp.asarray(gradients)}, jnp.zeros((4, size)))
    for replica in np.asarray(mean["a"]):
        assert not np.isfinite(replica[777])


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gradients_give_zero_mean_and_residual(kind):
    step, size = mean_over(kind, 2)
    zeros = np.zeros((2, SIZE), np.float32)
    mean, residuals = step(as_tree(zeros), jnp.zeros((2, size)))
    assert not as_flat(mean).any()
    assert not np.asarray(residuals).any()


def test_a_block_of_tiny_values_stays_in_the_residual():
    step, size = mean_over("int8", 2, shapes={"a": (1024,)})
    gradients = np.full((2, 1024), 1e-37, np.float32)
    mean, residuals = step({"a": jnp.asarray(gradients)}, jnp.zeros((2, size)))
    assert not np.asarray(mean["a"]).any()
    np.testing.assert_array_equal(residuals, gradients)


def test_integer_multiples_of_the_scale_are_sent_exactly():
    step, size = mean_over("int8", 2, shapes={"a": (1024,)})
    rng = np.random.default_rng(0)
    integers = rng.integers(-126, 127, size=1024)
    integers[::256] = 127  # the largest element of each block, which determines the scale
    same = np.stack([integers, integers]).astype(np.float32) * 2.0**-9
    mean, residuals = step({"a": jnp.asarray(same)}, jnp.zeros((2, size)))
    np.testing.assert_array_equal(mean["a"], same)
    assert not np.asarray(residuals).any()


def test_eight_bits_of_significand_are_sent_exactly():
    step, size = mean_over("bfloat16", 2, shapes={"a": (1000,)})
    rng = np.random.default_rng(0)
    # Sums and halves of even numbers up to 128 need at most eight bits.
    values = (2 * rng.integers(-64, 65, size=(2, 1000))).astype(np.float32)
    mean, residuals = step({"a": jnp.asarray(values)}, jnp.zeros((2, size)))
    np.testing.assert_array_equal(mean["a"][0], values.mean(axis=0))
    assert not np.asarray(residuals).any()


@pytest.mark.parametrize("devices", [2, 4])
def test_top_k_of_all_elements_is_the_exact_mean(devices):
    step, size = mean_over("top_k", devices, fraction=1.0)
    gradients = random_gradients(devices)
    mean, residuals = step(as_tree(gradients), jnp.zeros((devices, size)))
    total = gradients[0]
    for other in gradients[1:]:
        total = total + other
    for replica in as_flat(mean):
        np.testing.assert_array_equal(replica, total / np.float32(devices))
    assert not np.asarray(residuals).any()


def test_at_least_one_element_is_sent():
    step, size = mean_over("top_k", 2, shapes={"a": (7,)}, fraction=1e-6)
    gradients = jnp.asarray([[0, 0, -5, 0, 1, 0, 0], [0, 3, 0, 0, 0, 0, 2]], jnp.float32)
    mean, residuals = step({"a": gradients}, jnp.zeros((2, size)))
    np.testing.assert_array_equal(mean["a"][0], [0, 1.5, -2.5, 0, 0, 0, 0])
    np.testing.assert_array_equal(residuals, [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 2]])


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize(("size", "devices"), [(1, 8), (450, 4), (5_000, 8), (1_000_000, 8)])
def test_slices_hold_all_elements_with_little_padding(kind, size, devices):
    blocks, block = layout(kind, size, devices)
    capacity = devices * blocks * block
    assert size <= capacity < size + devices * blocks
    if kind == "int8":
        assert block <= 256
        assert blocks == max(1, -(-size // (devices * 256)))


def test_invalid_arguments_of_compression_are_rejected():
    with pytest.raises(ValueError, match="kind='int4': must be one of bfloat16, int8, top_k"):
        compressed_mean("int4", identity_collectives)
    with pytest.raises(ValueError, match=r"top_k_fraction=1.5: must be above 0 and at most 1"):
        compressed_mean("top_k", identity_collectives, top_k_fraction=1.5)


def test_the_residual_is_the_first_state_and_is_not_flushed_to_zero():
    config = tiny(devices=2, compression="bfloat16")
    optimizer = make_optimizer(config, identity_collectives)(hyper_from(config))
    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(20_000)}  # one packed, one not
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e-35 * 1.001), params)
    state = optimizer.init(params)
    _, state = quick_jit(optimizer.update)(gradients, state, params)
    assert isinstance(state[0], ResidualState)
    residual = np.asarray(state[0].residual)
    expected = np.float32(3e-35 * 1.001) - through_bfloat16(np.float32(3e-35 * 1.001))
    assert 0 < abs(expected) < 1e-36  # below the threshold of ``flush_tiny``
    # The code of the mean is exact here and adds nothing.
    np.testing.assert_allclose(residual, np.full(20_012, expected), rtol=1e-5)


def test_without_compression_program_and_state_are_those_of_optax():
    config = tiny(devices=2, clip_norm=1.0)
    hyper, collectives = hyper_from(config), device_collectives(2)
    plain = pack_small(
        optax.chain(
            all_reduce(collectives),
            optax.clip_by_global_norm(hyper.clip_norm),
            flush_tiny(optax.scale_by_adam(eps=config.optimizer_epsilon)),
            optax.scale_by_learning_rate(hyper.learning_rate),
        )
    )
    ours = make_optimizer(config, collectives)(hyper)
    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(20_000)}
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(plain.init(params))
    mesh, replicated = Mesh(np.asarray(jax.devices()[:2]), (DEVICE_AXIS,)), PartitionSpec()

    def program(optimizer):
        def update(gradients):
            with jax.numpy_dtype_promotion("standard"):
                return optimizer.update(gradients, optimizer.init(params), params)

        mapped = jax.shard_map(
            update, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
        )
        return jax.jit(mapped).lower(params).as_text()

    assert program(ours) == program(plain)


def compressed_trainer(kind, mapping="shard_map", environment=None, **overrides):
    fraction = {"top_k_fraction": FRACTION} if kind == "top_k" else {}
    config = tiny(devices=2, compression=kind, **fraction, **overrides)
    trainer = make_trainer(
        config, environment=environment or noisy(), collectives=device_collectives(2)
    )
    return across_devices(trainer, jax.devices()[:2], mapping=mapping)


def residual_of(agent_state):
    return np.asarray(agent_state.opt_state[0].residual)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("int8", 100),
        *(pytest.param(kind, 1_000, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_replicas_stay_identical_while_residuals_differ(kind, steps):
    trainer = compressed_trainer(kind)
    start = quick_jit(trainer.init)(jax.random.key(0))
    end, metrics = quick_jit(trainer.chunk(steps))(start)
    assert int(metrics.gradient_steps) == steps
    shared = end.agent._replace(opt_state=end.agent.opt_state[1:])
    for leaf in jax.tree.leaves((shared, end.counters)):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start.agent.params, end.agent.params)
    assert min(jax.tree.leaves(moved)) > 0
    residual = residual_of(end.agent)
    assert (residual[0] != residual[1]).mean() > 0.1
    assert np.isfinite(residual).all()


@pytest.mark.slow
def test_compression_is_bitwise_identical_with_both_mappings():
    ends = []
    for mapping in ("shard_map", "pmap"):
        trainer = compressed_trainer("int8", mapping)
        state = quick_jit(trainer.init)(jax.random.key(0))
        ends.append(quick_jit(trainer.chunk(50))(state)[0].agent)
    assert residual_of(ends[0]).any()
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_guard_restores_the_residual_too(kind):
    trainer = compressed_trainer(kind, environment=poisoned(30, limit=1000), guard="skip")
    state = quick_jit(trainer.init)(jax.random.key(0))
    step, undone = quick_jit(trainer.step), 0
    for _ in range(60):
        before = state
        state, metrics = step(state)
        if metrics.skipped:
            undone += 1
            jax.tree.map(np.testing.assert_array_equal, state.agent, before.agent)
    assert 0 < undone < 60
    assert not not_finite(state.agent)
