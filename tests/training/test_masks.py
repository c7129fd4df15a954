"""Masks of legal actions in training: no variant and no mapping takes an illegal action."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.exploration import select_actions
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.config.config import Config
from jaxdqn.networks import make_network
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_hypers, learner_keys
from jaxdqn.training.algorithms import make_learning
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Agent
from tests.toys import POISON, masked, quick_jit, tiny, watched_run
from tests.training.test_custom_parts import newest

VARIANTS = {
    "dqn": {},
    "n_step": {"n_step": 3},
    "double": {"double": True},
    "soft": {"bootstrap": "soft"},
    "munchausen": {"bootstrap": "munchausen"},
    "categorical": {"loss": "categorical", "double": True},
    "quantile": {"loss": "quantile"},
    "implicit quantile": {"loss": "implicit_quantile", "bootstrap": "munchausen"},
    "noisy": {"noisy": True},
    "boltzmann": {"exploration": "boltzmann"},
    "repeat": {"epsilon_repeat": 0.5},
    "r2d2": {"recurrent": "lstm", "sequence_length": 4, "burn_in": 2, "double": True},
    "prioritized": {"replay": "prioritized"},
    "pooled resets": {"reset": "pooled"},
    "frame stack": {"frame_stack": 2},
}
PQN = {
    "algorithm": "pqn",
    "num_envs": 4,
    "rollout_length": 4,
    "minibatches": 2,
    "total_rows": 400,
    "log_every": 200,
    "hidden_sizes": (16,),
}


def config_of(variant):
    return Config(**PQN) if variant == "pqn" else tiny(**VARIANTS[variant])


def rewards(state):
    return state.actor.timestep.reward


FAST = ("dqn", "pqn")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in (*VARIANTS, "pqn")
    ],
)
def test_no_variant_takes_an_illegal_action(variant):
    trainer = make_trainer(config_of(variant), environment=masked())
    start, end, metrics, seen = watched_run(trainer, 40, rewards)
    np.testing.assert_array_equal(metrics.illegal, 0)
    assert seen.max() < POISON
    assert int(metrics.episodes.sum()) > 10
    leaves = jax.tree.leaves((end.agent.params, metrics.loss))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), start.agent.params, end.agent.params)
    assert any(jax.tree.leaves(changed))
    if variant != "pqn":  # the warm-up took none either
        assert end.replay.storage.reward.max() < POISON


@pytest.mark.slow
def test_without_its_mask_the_environment_is_poisoned():
    _, _, metrics, seen = watched_run(
        make_trainer(tiny(), environment=masked(mask=False)), 40, rewards
    )
    assert seen.max() == POISON
    assert metrics.illegal == ()


@pytest.mark.slow
def test_masks_that_allow_every_action_do_not_change_training():
    free = masked(mask=False)

    def all_legal(reset_or_step):
        def wrapped(*args):
            state, timestep = reset_or_step(*args)
            return state, timestep._replace(legal=jnp.ones(3, bool))

        return wrapped

    legal = free._replace(
        reset=all_legal(free.reset), step=all_legal(free.step), spec=free.spec._replace(masked=True)
    )
    ends = [
        watched_run(make_trainer(tiny(double=True), environment=each), 5) for each in (free, legal)
    ]
    for one, other in zip(*((end.agent.params, m.loss) for _, end, m, _ in ends), strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other
        )
    np.testing.assert_array_equal(*(end.actor.action for _, end, _, _ in ends))


MAPPINGS = {
    "population": {"num_seeds": 2},
    "population in turn": {"num_seeds": 2, "population": "map"},
    "pmap": {"devices": 2},
    "shard_map": {"devices": 2, "mapping": "shard_map"},
    "data and model": {"devices": 4, "model_devices": 2, "hidden_sizes": (64, 512)},
    "averaged": {"devices": 2, "average_every": 2},
}
FAST_MAPPINGS = ("population",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST_MAPPINGS else pytest.mark.slow)
        for name in MAPPINGS
    ],
)
def test_no_mapping_takes_an_illegal_action(name):
    config = tiny(num_envs=8, batch_size=16, **MAPPINGS[name])
    trainer = make_mapped_trainer(config, environment=masked())
    keys = learner_keys(config).train if config.learners > 1 else jax.random.key(0)
    hyper = (learner_hypers(config),) if config.learners > 1 else ()
    state = quick_jit(trainer.init)(keys, *hyper)
    _, metrics = quick_jit(trainer.chunk(20))(state)
    np.testing.assert_array_equal(metrics.illegal, 0)
    assert np.shape(metrics.illegal) == np.shape(metrics.env_steps)
    assert int(np.sum(metrics.return_sum)) < POISON
    assert int(np.sum(metrics.episodes)) > 10


def random_actions(key, q, exploration):
    """Explore uniformly at random, ignoring the mask."""
    return jax.random.randint(key, q.shape[:1], 0, q.shape[1], jnp.int32), jnp.ones(q.shape[0])


def masked_greedy(key, q, exploration):
    """Explore epsilon-greedily among the legal actions."""
    assert exploration.legal.shape == q.shape
    return select_actions("epsilon_greedy", key, q, exploration)


@pytest.mark.slow
def test_actions_of_a_custom_exploration_are_counted_where_they_are_illegal():
    trainer = make_trainer(tiny(), environment=masked(), explore=random_actions)
    _, _, metrics, seen = watched_run(trainer, 20, rewards)
    np.testing.assert_array_equal(metrics.illegal, (seen == POISON).sum(axis=1))
    assert metrics.illegal.sum() > 10
    trainer = make_trainer(tiny(), environment=masked(), explore=masked_greedy)
    np.testing.assert_array_equal(watched_run(trainer, 20)[2].illegal, 0)


def blind_agent(config, spec, collectives):
    """Return an agent whose ``act`` takes no mask."""
    made = make_agent(make_network(config, spec), make_optimizer(config, collectives))

    def act(key, params, carry, obs, first, exploration):
        return made.act(key, params, carry, obs, first, exploration)

    return Agent(made.init, act, made.learn, made.initial_carry)


def blind_learning(config, agent, collectives):
    learning = make_learning(config, agent, collectives)
    return learning._replace(
        init=lambda row: learning.init(row._replace(legal=())),
        remember=lambda replay, rows: learning.remember(replay, rows._replace(legal=())),
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"agent": blind_agent}, "agent: act must take legal"),
        ({"replay": newest}, "legal_tm1: must be in the batches of your replay or learning"),
        ({"learning": blind_learning}, "legal_tm1: must be in the batches of your replay or"),
    ],
)
def test_custom_parts_that_ignore_masks_are_rejected(parts, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny(), environment=masked(), **parts)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_no_evaluation_takes_an_illegal_action(epsilon):
    trainer = make_trainer(tiny(), environment=masked())
    params = jax.eval_shape(trainer.init, jax.random.key(0)).agent.params
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)  # equal Q: action 0 is greedy
    results = {}
    for name, environment in (("masked", masked()), ("blind", masked(mask=False))):
        evaluate = make_evaluator(trainer.agent, environment, 30, epsilon=epsilon)
        results[name] = quick_jit(evaluate)(params, jax.random.key(1)).returns
    assert results["masked"].max() < POISON
    assert results["blind"].max() > POISON / 2
