"""The mapping over learners: its arguments, hyper-parameters and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.monitoring.records import learner_identity
from jaxdqn.monitoring.terminal import seeds_of
from jaxdqn.parallel import across_devices, device_collectives, population
from jaxdqn.replay import tree_bytes
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.toys import noisy, quick_jit, tiny


@pytest.fixture(scope="module")
def trainer():
    return make_trainer(tiny(), environment=noisy())


@pytest.mark.slow
def test_each_learner_can_be_given_its_hyper_parameters(trainer):
    many = population(trainer, 3, how="vmap")
    gammas = jnp.float32([0.5, 0.9, 0.99])
    hyper = jax.tree.map(lambda leaf: jnp.full(3, leaf), hyper_from(tiny()))
    keys = jnp.stack([jax.random.key(index) for index in (7, 7, 8)])
    state = quick_jit(many.init)(keys, hyper._replace(gamma=gammas))
    np.testing.assert_array_equal(state.hyper.gamma, gammas)
    _, metrics = quick_jit(many.chunk(5))(state)
    # Learners with the same key act equally and learn differently, with different gammas.
    obs = state.replay.storage.obs
    np.testing.assert_array_equal(obs[0], obs[1])
    assert (obs[0] != obs[2]).any()
    assert metrics.loss[0] != metrics.loss[1]
    # Hyper-parameters may be left out if they are the same for all.
    assert jax.eval_shape(many.init, keys).hyper.gamma.shape == (3,)


@pytest.mark.parametrize(
    ("how", "learners", "iterations"),
    [
        ("map", 4, 1),
        pytest.param("map", 4, 3, marks=pytest.mark.slow),
        pytest.param("map", 4, None, marks=pytest.mark.slow),
        pytest.param("map", 1, 1, marks=pytest.mark.slow),
        pytest.param("map", 1, 3, marks=pytest.mark.slow),
        pytest.param("vmap", 4, 1, marks=pytest.mark.slow),
        pytest.param("vmap", 4, 3, marks=pytest.mark.slow),
    ],
)
def test_the_rings_are_not_copied(how, learners, iterations):
    """With map and several learners one ring is copied at a time, once per chunk or step."""
    temporary, rings = [], []
    for capacity in (1_024, 262_144):
        trainer = make_trainer(tiny(replay_capacity=capacity, hidden_sizes=()), environment=noisy())
        many = population(trainer, learners, how=how)
        state = jax.eval_shape(many.init, jax.random.split(jax.random.key(0), learners))
        chunk = many.step if iterations is None else many.chunk(iterations)
        chunk = quick_jit(chunk, donate_argnums=0).lower(state).compile()
        memory = chunk.memory_analysis()
        assert memory.alias_size_in_bytes >= tree_bytes(state.replay)
        temporary.append(memory.temp_size_in_bytes)
        rings.append(tree_bytes(state.replay) // learners)
    copied = rings[1] - rings[0] if how == "map" and learners > 1 else 0
    assert abs(temporary[1] - temporary[0] - copied) < 4_096


def test_invalid_arguments_of_a_population_are_rejected(trainer):
    with pytest.raises(ValueError, match="how='both': must be one of auto, vmap, map"):
        population(trainer, 4, how="both")
    with pytest.raises(ValueError, match="size=3: must be a multiple of the 2 devices"):
        population(trainer, 3, devices=jax.devices()[:2])
    with pytest.raises(ValueError, match="size=0"):
        population(trainer, 0)
    with pytest.raises(ValueError, match="must be distinct"):
        population(trainer, 4, devices=jax.devices()[:1] * 2)
    many = population(trainer, 4)
    over_one = across_devices(trainer, jax.devices()[:1])
    for mapped in (many, over_one):
        with pytest.raises(ValueError, match=r"^trainer\.mapped=True: must be False, of one"):
            population(mapped, 2)
    pair = make_trainer(tiny(devices=2), environment=noisy(), collectives=device_collectives(2))
    with pytest.raises(ValueError, match=r"trainer\.replicas=2: must be 1.*Config\(devices=1\)"):
        population(pair, 2)
    keys = jax.random.split(jax.random.key(0), 4)
    with pytest.raises(ValueError, match=r"hyper: must have a leading axis of the 4 learners"):
        many.init(keys, hyper_from(tiny()))
    with pytest.raises(ValueError, match=r"key: must have a leading axis of the 4 learners"):
        many.init(keys[:3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sweep": ("hidden_sizes=16,32",)}, "hidden_sizes.*must be of a traced scalar"),
        ({"sweep": ("learning_rat=1e-3",)}, "nearest: learning_rate"),
        ({"sweep": ("gamma=0.9,1.5",)}, "gamma=1.5: must be between 0 and 1"),
        ({"sweep": ("gamma=0.9,high",)}, "with numbers"),
        ({"sweep": ("gamma=0.9,0.8", "gamma=0.7")}, "the only sweep of gamma"),
        ({"sweep": ("clip_norm=1,2",)}, "give clip_norm a value too"),
        ({"num_seeds": 3, "devices": 2}, "devices=2: must be a divisor of the 3 learners"),
        ({"num_seeds": 2, "guard": "rollback"}, "guard='rollback': must be off, skip or stop"),
        ({"num_seeds": 2, "population": "both"}, "population='both': must be one of"),
        ({"num_seeds": 0}, "num_seeds=0: must be at least 1"),
        ({"population": "map"}, "population='map': must be auto with one learner"),
    ],
)
def test_invalid_configurations_of_a_population_are_rejected(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny(**overrides)


def test_the_learners_of_a_sweep_are_every_combination_with_every_seed():
    config = tiny(seed=3, num_seeds=2, sweep=("--learning-rate=1e-3,3e-4", "gamma=0.9,0.99"))
    identities = [learner_identity(config, index) for index in range(config.learners)]
    assert config.learners == 8
    assert identities[0] == {"learner": 0, "seed": 3, "learning_rate": 1e-3, "gamma": 0.9}
    assert identities[3] == {"learner": 3, "seed": 4, "learning_rate": 1e-3, "gamma": 0.99}
    assert identities[7] == {"learner": 7, "seed": 4, "learning_rate": 3e-4, "gamma": 0.99}
    assert seeds_of(config) == (
        "seeds 3 to 4 of each of --learning-rate=1e-3,3e-4 x gamma=0.9,0.99"
    )
