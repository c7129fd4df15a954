"""The optimiser chain, link by link, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.agent.optimizer import flush_tiny, make_optimizer, pack_small
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config, replace
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.tree import global_norm
from jaxdqn.types import Hyper
from tests.toys import quick_jit

SHAPES = {"a": (3, 4), "b": (5,), "c": ()}
BASE = Config(learning_rate=0.1, optimizer="adam")
SMALLEST_NORMAL = np.finfo(np.float32).tiny


def _hyper(learning_rate=0.1, clip_value=np.inf, clip_norm=np.inf):
    values = dict.fromkeys(SWEEPABLE, jnp.float32(0))
    values |= {"learning_rate": learning_rate, "clip_value": clip_value, "clip_norm": clip_norm}
    return Hyper(**{name: jnp.float32(value) for name, value in values.items()})


def _gradients(steps=4, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        {
            name: (scale * rng.normal(size=shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in range(steps)
    ]


def _updates(config, gradients, hyper=None, collectives=identity_collectives):
    """Return the updates of the gradients, applied one after the other."""
    hyper = _hyper() if hyper is None else hyper
    optimizer = make_optimizer(config, collectives)

    @jax.jit
    def run(hyper, gradients):
        state = optimizer(hyper).init(jax.tree.map(jnp.zeros_like, gradients[0]))
        updates = []
        for gradient in gradients:
            update, state = optimizer(hyper).update(gradient, state)
            updates.append(update)
        return updates

    return run(hyper, gradients)


def _assert_same(ours, expected, rtol=1e-5, atol=1e-7):
    for one, other in zip(ours, expected, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other
        )


def _map(function, *trees):
    return jax.tree.map(function, *trees)


def _global_norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def _adam(gradients, rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    mu = nu = _map(np.zeros_like, gradients[0])
    for t, gradient in enumerate(gradients, 1):
        mu = _map(lambda m, g: b1 * m + (1 - b1) * g, mu, gradient)
        nu = _map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, gradient)
        yield _map(
            lambda m, v, t=t: -rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps), mu, nu
        )


def _rmsprop(gradients, rate=0.1, decay=0.9, eps=1e-8):
    nu = _map(np.zeros_like, gradients[0])
    for gradient in gradients:
        nu = _map(lambda v, g: decay * v + (1 - decay) * g**2, nu, gradient)
        yield _map(lambda v, g: -rate * g / (np.sqrt(v) + eps), nu, gradient)


def _radam(gradients, rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """Liu et al. 2020, algorithm 2, with the threshold of 5."""
    mu = nu = _map(np.zeros_like, gradients[0])
    limit = 2 / (1 - b2) - 1
    for t, gradient in enumerate(gradients, 1):
        mu = _map(lambda m, g: b1 * m + (1 - b1) * g, mu, gradient)
        nu = _map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, gradient)
        length = limit - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            yield _map(lambda m, t=t: -rate * m / (1 - b1**t), mu)
            continue
        r = np.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
        yield _map(
            lambda m, v, t=t, r=r: -rate * r * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps),
            mu,
            nu,
        )


TWINS = {"adam": _adam, "rmsprop": _rmsprop, "radam": _radam}
# RAdam subtracts almost equal numbers near 1999, which loses digits in float32 near 5.
RTOL = {"adam": 1e-5, "rmsprop": 1e-5, "radam": 1e-2}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_optimisers_agree_with_numpy(name):
    gradients = _gradients(8)
    ours = _updates(replace(BASE, optimizer=name), gradients)
    doubles = [_map(np.float64, gradient) for gradient in gradients]
    _assert_same(ours, TWINS[name](doubles), rtol=RTOL[name])


@pytest.mark.parametrize("name", sorted(TWINS))
def test_epsilon_is_added_to_the_root_of_the_second_moment(name):
    gradients = _gradients(8, scale=0.1)
    ours = _updates(replace(BASE, optimizer=name, optimizer_epsilon=0.5), gradients)
    doubles = [_map(np.float64, gradient) for gradient in gradients]
    _assert_same(ours, TWINS[name](doubles, eps=0.5), rtol=RTOL[name])


def _centered_rms(gradients, decay, eps):
    """Return the updates of the NumPy twin: one tree per gradient."""
    mean = square = _map(np.zeros_like, gradients[0])
    updates = []
    for gradient in gradients:
        mean = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, mean, gradient)
        square = jax.tree.map(lambda s, g: decay * s + (1 - decay) * g * g, square, gradient)
        updates.append(
            jax.tree.map(
                lambda g, m, s: -BASE.learning_rate * g / np.sqrt(s - m * m + eps),
                gradient, mean, square,
            )
        )  # fmt: skip
    return updates


@pytest.mark.parametrize("decay", [0.9, 0.95])
def test_centred_rmsprop_divides_by_the_standard_deviation(decay):
    gradients = _gradients(8)
    config = replace(BASE, optimizer="rmsprop", rmsprop_centered=True, rmsprop_decay=decay)
    ours = _updates(replace(config, optimizer_epsilon=0.01), gradients)
    doubles = [_map(np.float64, gradient) for gradient in gradients]
    _assert_same(ours, _centered_rms(doubles, decay, 0.01), rtol=1e-4)


def test_centred_rmsprop_of_a_constant_gradient_is_finite():
    config = replace(BASE, optimizer="rmsprop", rmsprop_centered=True)
    ours = _updates(config, [_map(lambda g: 0 * g + 123.4, _gradients(1)[0])] * 8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))


def test_the_decay_of_rmsprop_is_an_option():
    gradients = _gradients(8)
    ours = _updates(replace(BASE, optimizer="rmsprop", rmsprop_decay=0.5), gradients)
    others = _updates(replace(BASE, optimizer="rmsprop"), gradients)
    twin = optax.rmsprop(BASE.learning_rate, decay=0.5, eps=1e-8, eps_in_sqrt=False)
    state, wanted = twin.init(gradients[0]), []
    for gradient in gradients:
        update, state = twin.update(gradient, state)
        wanted.append(update)
    _assert_same(ours, wanted, rtol=1e-5)
    assert not np.allclose(jax.tree.leaves(ours[-1])[0], jax.tree.leaves(others[-1])[0])


def test_clip_value_clips_each_element_before_the_optimiser():
    gradients = _gradients()
    ours = _updates(replace(BASE, clip_value=0.2), gradients, _hyper(clip_value=0.2))
    clipped = [_map(lambda g: np.clip(g, -0.2, 0.2), gradient) for gradient in gradients]
    _assert_same(ours, _adam(clipped))


def test_clip_norm_scales_only_the_gradients_above_it():
    gradients = [*_gradients(2, scale=10.0), *_gradients(2, seed=1, scale=0.01)]
    ours = _updates(replace(BASE, clip_norm=1.0), gradients, _hyper(clip_norm=1.0))
    clipped = [
        _map(lambda g, gradient=gradient: g / max(_global_norm(gradient), 1.0), gradient)
        for gradient in gradients
    ]
    assert _global_norm(gradients[0]) > 1 > _global_norm(gradients[2])
    _assert_same(ours, _adam(clipped))


def test_clip_by_value_comes_before_clip_by_norm():
    gradients = _gradients(scale=10.0)
    config = replace(BASE, clip_value=0.2, clip_norm=0.3)
    ours = _updates(config, gradients, _hyper(clip_value=0.2, clip_norm=0.3))
    clipped = [_map(lambda g: np.clip(g, -0.2, 0.2), gradient) for gradient in gradients]
    clipped = [_map(lambda g, c=c: g * min(1.0, 0.3 / _global_norm(c)), c) for c in clipped]
    _assert_same(ours, _adam(clipped))


def test_without_its_option_no_clip_is_applied():
    gradients = _gradients(scale=10.0)
    # If the chain had the clipping links, these would clip.
    ours = _updates(BASE, gradients, _hyper(clip_value=0.1, clip_norm=0.1))
    _assert_same(ours, _adam(gradients))


def test_normalised_gradients_have_norm_one_and_zero_stays_zero():
    gradients = [*_gradients(2, scale=1e-3), _map(np.zeros_like, _gradients(1)[0])]
    ours = _updates(replace(BASE, normalize_gradients=True), gradients)
    unit = [
        _map(lambda g, norm=norm: g / norm if norm else g, gradient)
        for gradient, norm in zip(gradients, map(_global_norm, gradients), strict=True)
    ]
    _assert_same(ours, _adam(unit))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_schedule_over_the_gradient_steps(schedule):
    config = Config(
        learning_rate_schedule=schedule, num_envs=32, total_rows=1_024 + 32 * 10, log_every=32
    )
    total = config.total_gradient_steps
    assert total == 10
    # Adam's update for a constant gradient is the learning rate.
    ours = _updates(config, [{"w": np.float32([2.0])}] * (total + 3), _hyper(learning_rate=0.5))
    done = np.minimum(np.arange(total + 3) / total, 1)
    schedule_values = {
        "constant": np.ones_like(done),
        "linear": 1 - done,
        "cosine": 0.5 * (1 + np.cos(np.pi * done)),
    }[schedule]
    np.testing.assert_allclose(
        [float(update["w"][0]) for update in ours], -0.5 * schedule_values, rtol=1e-5, atol=1e-7
    )


def test_hyper_parameters_can_be_swept_in_one_program():
    config = replace(BASE, clip_norm=1.0, clip_value=1.0)
    gradients = _gradients(3, scale=2.0)
    members = [_hyper(0.1, 0.5, 0.7), _hyper(0.01, 1.5, 2.0)]
    optimizer = make_optimizer(config)

    def run(hyper):
        state = optimizer(hyper).init(gradients[0])
        for gradient in gradients:
            updates, state = optimizer(hyper).update(gradient, state)
        return updates

    together = jax.jit(jax.vmap(run))(_map(lambda *leaves: jnp.stack(leaves), *members))
    for member, hyper in enumerate(members):
        separate = _updates(config, gradients, hyper)[-1]
        _assert_same([_map(lambda leaf, member=member: leaf[member], together)], [separate])
    assert abs(together["c"][0]) > 5 * abs(together["c"][1])


def test_the_structure_of_the_state_does_not_depend_on_the_hyper_parameters():
    optimizer = make_optimizer(replace(BASE, clip_norm=1.0))
    states = [optimizer(_hyper(rate)).init(_gradients(1)[0]) for rate in (0.1, 1e-4)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_clipping_and_normalising_apply_to_the_mean_over_devices():
    large, small = _gradients(1, scale=3.0)[0], _gradients(1, seed=1, scale=0.1)[0]
    per_device = _map(lambda *leaves: jnp.stack(leaves), large, small)
    mean = _map(lambda a, b: (a + b) / 2, large, small)
    pair = identity_collectives._replace(mean=lambda tree: jax.lax.pmean(tree, "pair"), size=2)
    for changes in (
        {"clip_norm": 1.0},
        {"clip_value": 0.3},
        {"normalize_gradients": True},
    ):
        # With so large an epsilon the update depends on the magnitude of the gradient.
        config = replace(BASE, optimizer_epsilon=1.0, **changes)
        hyper = _hyper(clip_norm=1.0, clip_value=0.3)
        optimizer = make_optimizer(config, pair)

        def update(gradient, optimizer=optimizer, hyper=hyper):
            transform = optimizer(hyper)
            return transform.update(gradient, transform.init(gradient))[0]

        ours = quick_jit(jax.vmap(update, axis_name="pair"))(per_device)
        expected = _updates(config, [mean], hyper)[0]
        for device in range(2):
            _assert_same([_map(lambda leaf, d=device: leaf[d], ours)], [expected])


def test_the_chain_has_no_conditional():
    config = replace(BASE, clip_value=1.0, clip_norm=1.0, normalize_gradients=True)
    for name in TWINS:
        optimizer = make_optimizer(replace(config, optimizer=name))(_hyper())
        gradient = _gradients(1)[0]
        jaxpr = str(jax.make_jaxpr(optimizer.update)(gradient, optimizer.init(gradient)))
        assert "cond[" not in jaxpr


@pytest.mark.parametrize("limit", [0, 1, 5, 12])
def test_packing_changes_no_update(limit):
    gradients = _gradients()
    params = _gradients(1, seed=9)[0]
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    packed = pack_small(plain, limit)
    with jax.numpy_dtype_promotion("standard"):
        state, packed_state = quick_jit(plain.init)(params), quick_jit(packed.init)(params)
        update, packed_update = quick_jit(plain.update), quick_jit(packed.update)
        for gradient in gradients:
            expected, state = update(gradient, state, params)
            ours, packed_state = packed_update(gradient, packed_state, params)
            _assert_same([ours], [expected])
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(packed_state) if leaf.dtype != jnp.int32)
    moments = {0: [1, 5, 12], 1: [1, 5, 12], 5: [6, 12], 12: [18]}[limit]
    assert sizes == sorted(2 * moments)


def test_packing_leaves_tensors_of_another_type_unpacked():
    gradient = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.bfloat16)}
    packed = pack_small(optax.scale(2.0))
    updates, _ = packed.update(gradient, packed.init(gradient))
    assert updates["b"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["a"], [2, 2, 2])


@pytest.mark.parametrize("name", sorted(TWINS))
def test_moments_of_weights_without_gradient_reach_zero_without_becoming_subnormal(name):
    optimizer = make_optimizer(replace(BASE, optimizer=name))(_hyper())
    gradient = {"w": np.float32([1.0, 1e-16, 5e-18, 1e-30, 0.0])}
    state = optimizer.init(gradient)

    def step(state, gradient):
        _, state = optimizer.update(gradient, state)
        floats = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
        return state, jnp.stack(floats)

    with_gradient = _map(lambda leaf: np.tile(leaf, (50, 1)), gradient)
    without_gradient = _map(lambda leaf: np.zeros((1_000, 5), np.float32), gradient)
    state, early = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, with_gradient)
    # Second moments need tens of thousands of steps to decay; start near the end of that.
    state = _map(lambda leaf: leaf * 1e-35 if leaf.dtype == jnp.float32 else leaf, state)
    state, late = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, without_gradient)
    sizes = np.abs(np.concatenate([np.ravel(early), np.ravel(late)]))
    # The processor may flush subnormal numbers itself, so test a factor of 8 above them.
    assert np.all((sizes == 0) | (sizes > 8 * SMALLEST_NORMAL))
    assert np.all(early[-1][..., 0] > 0)


def test_flushing_changes_updates_by_rounding_errors_only():
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-30, 2, (200, 64))
    gradients = (sizes * rng.choice([-1, 1], sizes.shape)).astype(np.float32)
    plain = optax.scale_by_adam()
    flushed = flush_tiny(plain)
    with jax.numpy_dtype_promotion("standard"):
        for transform in (plain, flushed):
            assert transform.init(gradients[0]).count == 0
        _, expected = jax.lax.scan(
            lambda s, g: plain.update(g, s)[::-1], plain.init(gradients[0]), gradients
        )
        _, ours = jax.lax.scan(
            lambda s, g: flushed.update(g, s)[::-1], flushed.init(gradients[0]), gradients
        )
    # Updates are of order 1, so the tolerance is a few roundings of float32.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-7)


def test_global_norm_is_over_small_and_large_leaves():
    tree = {"a": jnp.array([3.0]), "b": [jnp.full((200, 100), 0.01), jnp.array([[4.0]])]}
    np.testing.assert_allclose(global_norm(tree), np.sqrt(9 + 16 + 200 * 100 * 1e-4), rtol=1e-6)
    np.testing.assert_allclose(global_norm(tree), optax.tree.norm(tree), rtol=1e-6)
    assert global_norm({}) == 0.0


def _muon(gradients, rate=0.1, beta=0.95, eps=1e-8):
    """Jordan et al. 2024: Nesterov momentum, orthogonalised by five Newton-Schulz steps."""
    momentum = np.zeros_like(gradients[0])
    for t, gradient in enumerate(gradients, 1):
        momentum = beta * momentum + (1 - beta) * gradient
        ahead = beta * momentum / (1 - beta ** (t + 1)) + (1 - beta) * gradient / (1 - beta**t)
        x = ahead / (np.linalg.norm(ahead) + eps)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        yield -rate * 0.2 * np.sqrt(max(x.shape)) * x


def test_muon_orthogonalises_matrices():
    config = replace(BASE, optimizer="muon")
    gradients = _gradients()
    updates = _updates(config, gradients)
    expected = list(_muon([gradient["a"] for gradient in gradients]))
    _assert_same([update["a"] for update in updates], expected, rtol=1e-3, atol=1e-4)
    for update in updates:
        singular = np.linalg.svd(update["a"], compute_uv=False) / (0.1 * 0.2 * np.sqrt(4))
        assert ((singular > 0.6) & (singular < 1.3)).all()


def test_muon_is_adam_with_nesterov_momentum_for_other_parameters():
    gradients = _gradients()
    updates = _updates(replace(BASE, optimizer="muon", clip_norm=1.0), gradients,
                       _hyper(clip_norm=np.float32(1e9)))  # fmt: skip
    nadam = optax.nadam(0.1)
    with jax.numpy_dtype_promotion("standard"):
        state = nadam.init(gradients[0])
        for gradient, update in zip(gradients, updates, strict=True):
            expected, state = nadam.update(gradient, state)
            for name in ("b", "c"):
                np.testing.assert_allclose(update[name], expected[name], rtol=1e-4, atol=1e-6)
