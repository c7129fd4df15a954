"""The optimiser chain, link by link, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config, replace
from tests.optimizers import (
    BASE,
    RTOL,
    TWINS,
    adam_twin,
    assert_same,
    hyper_of,
    norm_of,
    random_gradients,
    tree_map,
    updates_of,
)
from tests.toys import quick_jit


@pytest.mark.parametrize("name", sorted(TWINS))
def test_optimisers_agree_with_numpy(name):
    gradients = random_gradients(8)
    ours = updates_of(replace(BASE, optimizer=name), gradients)
    doubles = [tree_map(np.float64, gradient) for gradient in gradients]
    assert_same(ours, TWINS[name](doubles), rtol=RTOL[name])


@pytest.mark.parametrize("name", sorted(TWINS))
def test_epsilon_is_added_to_the_root_of_the_second_moment(name):
    gradients = random_gradients(8, scale=0.1)
    ours = updates_of(replace(BASE, optimizer=name, optimizer_epsilon=0.5), gradients)
    doubles = [tree_map(np.float64, gradient) for gradient in gradients]
    assert_same(ours, TWINS[name](doubles, eps=0.5), rtol=RTOL[name])


def _centered_rms(gradients, decay, eps):
    """Return the updates of the NumPy twin: one tree per gradient."""
    mean = square = tree_map(np.zeros_like, gradients[0])
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
    gradients = random_gradients(8)
    config = replace(BASE, optimizer="rmsprop", rmsprop_centered=True, rmsprop_decay=decay)
    ours = updates_of(replace(config, optimizer_epsilon=0.01), gradients)
    doubles = [tree_map(np.float64, gradient) for gradient in gradients]
    assert_same(ours, _centered_rms(doubles, decay, 0.01), rtol=1e-4)


def test_centred_rmsprop_of_a_constant_gradient_is_finite():
    config = replace(BASE, optimizer="rmsprop", rmsprop_centered=True)
    ours = updates_of(config, [tree_map(lambda g: 0 * g + 123.4, random_gradients(1)[0])] * 8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))


def test_the_decay_of_rmsprop_is_an_option():
    gradients = random_gradients(8)
    ours = updates_of(replace(BASE, optimizer="rmsprop", rmsprop_decay=0.5), gradients)
    others = updates_of(replace(BASE, optimizer="rmsprop"), gradients)
    twin = optax.rmsprop(BASE.learning_rate, decay=0.5, eps=1e-8, eps_in_sqrt=False)
    state, wanted = twin.init(gradients[0]), []
    for gradient in gradients:
        update, state = twin.update(gradient, state)
        wanted.append(update)
    assert_same(ours, wanted, rtol=1e-5)
    assert not np.allclose(jax.tree.leaves(ours[-1])[0], jax.tree.leaves(others[-1])[0])


def test_clip_value_clips_each_element_before_the_optimiser():
    gradients = random_gradients()
    ours = updates_of(replace(BASE, clip_value=0.2), gradients, hyper_of(clip_value=0.2))
    clipped = [tree_map(lambda g: np.clip(g, -0.2, 0.2), gradient) for gradient in gradients]
    assert_same(ours, adam_twin(clipped))


def test_clip_norm_scales_only_the_gradients_above_it():
    gradients = [*random_gradients(2, scale=10.0), *random_gradients(2, seed=1, scale=0.01)]
    ours = updates_of(replace(BASE, clip_norm=1.0), gradients, hyper_of(clip_norm=1.0))
    clipped = [
        tree_map(lambda g, gradient=gradient: g / max(norm_of(gradient), 1.0), gradient)
        for gradient in gradients
    ]
    assert norm_of(gradients[0]) > 1 > norm_of(gradients[2])
    assert_same(ours, adam_twin(clipped))


def test_clip_by_value_comes_before_clip_by_norm():
    gradients = random_gradients(scale=10.0)
    config = replace(BASE, clip_value=0.2, clip_norm=0.3)
    ours = updates_of(config, gradients, hyper_of(clip_value=0.2, clip_norm=0.3))
    clipped = [tree_map(lambda g: np.clip(g, -0.2, 0.2), gradient) for gradient in gradients]
    clipped = [tree_map(lambda g, c=c: g * min(1.0, 0.3 / norm_of(c)), c) for c in clipped]
    assert_same(ours, adam_twin(clipped))


def test_without_its_option_no_clip_is_applied():
    gradients = random_gradients(scale=10.0)
    # If the chain had the clipping links, these would clip.
    ours = updates_of(BASE, gradients, hyper_of(clip_value=0.1, clip_norm=0.1))
    assert_same(ours, adam_twin(gradients))


def test_normalised_gradients_have_norm_one_and_zero_stays_zero():
    gradients = [*random_gradients(2, scale=1e-3), tree_map(np.zeros_like, random_gradients(1)[0])]
    ours = updates_of(replace(BASE, normalize_gradients=True), gradients)
    unit = [
        tree_map(lambda g, norm=norm: g / norm if norm else g, gradient)
        for gradient, norm in zip(gradients, map(norm_of, gradients), strict=True)
    ]
    assert_same(ours, adam_twin(unit))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_schedule_over_the_gradient_steps(schedule):
    config = Config(
        learning_rate_schedule=schedule, num_envs=32, total_rows=1_024 + 32 * 10, log_every=32
    )
    total = config.total_gradient_steps
    assert total == 10
    # Adam's update for a constant gradient is the learning rate.
    ours = updates_of(config, [{"w": np.float32([2.0])}] * (total + 3), hyper_of(learning_rate=0.5))
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
    gradients = random_gradients(3, scale=2.0)
    members = [hyper_of(0.1, 0.5, 0.7), hyper_of(0.01, 1.5, 2.0)]
    optimizer = make_optimizer(config)

    def run(hyper):
        state = optimizer(hyper).init(gradients[0])
        for gradient in gradients:
            updates, state = optimizer(hyper).update(gradient, state)
        return updates

    together = jax.jit(jax.vmap(run))(tree_map(lambda *leaves: jnp.stack(leaves), *members))
    for member, hyper in enumerate(members):
        separate = updates_of(config, gradients, hyper)[-1]
        assert_same([tree_map(lambda leaf, member=member: leaf[member], together)], [separate])
    assert abs(together["c"][0]) > 5 * abs(together["c"][1])


def test_the_structure_of_the_state_does_not_depend_on_the_hyper_parameters():
    optimizer = make_optimizer(replace(BASE, clip_norm=1.0))
    states = [optimizer(hyper_of(rate)).init(random_gradients(1)[0]) for rate in (0.1, 1e-4)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_clipping_and_normalising_apply_to_the_mean_over_devices():
    large, small = random_gradients(1, scale=3.0)[0], random_gradients(1, seed=1, scale=0.1)[0]
    per_device = tree_map(lambda *leaves: jnp.stack(leaves), large, small)
    mean = tree_map(lambda a, b: (a + b) / 2, large, small)
    pair = identity_collectives._replace(mean=lambda tree: jax.lax.pmean(tree, "pair"), size=2)
    for changes in (
        {"clip_norm": 1.0},
        {"clip_value": 0.3},
        {"normalize_gradients": True},
    ):
        # With so large an epsilon the update depends on the magnitude of the gradient.
        config = replace(BASE, optimizer_epsilon=1.0, **changes)
        hyper = hyper_of(clip_norm=1.0, clip_value=0.3)
        optimizer = make_optimizer(config, pair)

        def update(gradient, optimizer=optimizer, hyper=hyper):
            transform = optimizer(hyper)
            return transform.update(gradient, transform.init(gradient))[0]

        ours = quick_jit(jax.vmap(update, axis_name="pair"))(per_device)
        expected = updates_of(config, [mean], hyper)[0]
        for device in range(2):
            assert_same([tree_map(lambda leaf, d=device: leaf[d], ours)], [expected])


def test_the_chain_has_no_conditional():
    config = replace(BASE, clip_value=1.0, clip_norm=1.0, normalize_gradients=True)
    for name in TWINS:
        optimizer = make_optimizer(replace(config, optimizer=name))(hyper_of())
        gradient = random_gradients(1)[0]
        jaxpr = str(jax.make_jaxpr(optimizer.update)(gradient, optimizer.init(gradient)))
        assert "cond[" not in jaxpr
