"""PQN: targets against a slow NumPy twin, one step and the learned values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.losses import lambda_targets
from jaxdqn.networks import from_module, make_network
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import split_named
from jaxdqn.training.pqn import make_pqn_learning
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Row
from tests.agent.test_agent import Linear
from tests.envs.test_time_limits import GAMMA, LIMIT, REWARDS, endless_values, limit_as_terminal
from tests.toys import cycle, noisy, quick_jit, tiny, watched_run

OBS, ACTIONS, STEPS, ENVS = 5, 3, 8, 4


def pqn(**overrides):
    """Return a small configuration of PQN, with 32 rows per iteration."""
    values = {
        "algorithm": "pqn",
        "num_envs": ENVS,
        "rollout_length": STEPS,
        "minibatches": 4,
        "epochs": 2,
        "loss": "squared",
        "total_rows": 400,
        "log_every": 100,
        "hidden_sizes": (16,),
        "epsilon_decay_rows": 100,
        **overrides,
    }
    return type(tiny())(**values)


def targets_twin(rewards, terminated, values, invalid, gamma, decay):
    """Sum each target forward, step by step: a mixture of returns of 1, 2, ... steps."""
    steps, targets = len(rewards), []
    for start in range(steps):
        if invalid[start]:
            targets.append(values[start])
            continue
        total, weight, discount, at = 0.0, 1.0, 1.0, start
        while True:
            total += weight * discount * rewards[at]
            if terminated[at]:
                break
            discount *= gamma
            at += 1
            if at == steps or invalid[at]:
                total += weight * discount * values[at]
                break
            total += weight * (1 - decay) * discount * values[at]
            weight *= decay
        targets.append(total)
    return np.asarray(targets)


def random_episodes(seed):
    """Return a generator, and 20 flags ``terminated`` and ``invalid`` of a stream of episodes.

    After the end of each episode there is an invalid row.
    """
    rng = np.random.default_rng(seed)
    terminated, invalid, ended = [], [], rng.random() < 0.3
    for _ in range(20):
        invalid.append(ended)
        ends = not ended and rng.random() < 0.3
        terminated.append(ends and rng.random() < 0.5)
        ended = ends
    return rng, np.asarray(terminated), np.asarray(invalid)


@pytest.mark.parametrize("decay", [0.0, 0.65, 1.0])
def test_targets_are_mixtures_of_returns_that_stop_at_the_end_of_an_episode(decay):
    compute = quick_jit(lambda_targets)
    for seed in range(20):
        rng, terminated, invalid = random_episodes(seed)
        rewards = rng.normal(size=20).astype(np.float32)
        values = rng.normal(size=21).astype(np.float32)
        discount = np.where(terminated, 0, 0.9).astype(np.float32)
        targets = compute(rewards, discount, values, invalid, np.float32(decay))
        twin = targets_twin(rewards, terminated, values, invalid, 0.9, decay)
        np.testing.assert_allclose(targets, twin, rtol=1e-5, atol=1e-5)


def test_without_traces_the_target_equals_the_q_learning_target():
    values = jnp.arange(5.0)
    no = jnp.zeros(4, bool)
    targets = lambda_targets(jnp.ones(4), jnp.full(4, 0.5), values, no, jnp.float32(0))
    np.testing.assert_allclose(targets, 1 + 0.5 * np.arange(1, 5))


def test_one_pass_in_one_minibatch_is_one_gradient_step_on_the_valid_rows():
    """Compare with NumPy for a linear network and plain gradient descent."""
    config = pqn(minibatches=1, epochs=1, learning_rate=0.1, gamma=0.9, trace_decay=0.65)
    network = from_module(Linear())
    agent = make_agent(
        network, lambda hyper: optax.sgd(hyper.learning_rate), loss="squared", bootstrap="none"
    )
    learning = make_pqn_learning(config, agent, identity_collectives)
    environment = noisy(num_actions=ACTIONS)
    trainer = make_trainer(pqn(), environment=environment)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state._replace(key=()))
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(STEPS + 1, ENVS, OBS)).astype(np.float32)
    episodes = [random_episodes(seed)[1:] for seed in range(ENVS)]
    terminated = np.stack([ends[:STEPS] for ends, _ in episodes], axis=1)
    invalid = np.stack([flags[:STEPS] for _, flags in episodes], axis=1)
    first = np.concatenate([np.zeros((1, ENVS), bool), invalid])
    params = network.init(jax.random.key(1), jnp.asarray(obs[0]))
    weight, bias = (np.asarray(params["params"][name], np.float64) for name in ("weight", "bias"))
    q = obs.astype(np.float64) @ weight + bias
    rows = Row(
        obs=obs[:-1],
        first=first[:-1],
        action=rng.integers(ACTIONS, size=(STEPS, ENVS)).astype(np.int32),
        reward=rng.normal(size=(STEPS, ENVS)).astype(np.float32),
        terminated=terminated,
        truncated=np.zeros_like(terminated),
        extras=q[:-1].max(axis=-1).astype(np.float32),
    )
    rows = jax.tree.map(jnp.asarray, rows)
    hyper = hyper_from(config)
    agent_state = quick_jit(lambda *args: agent.init(*args, hyper=hyper))(
        jax.random.key(1), jnp.asarray(obs[0])
    )
    actor = state.actor._replace(
        timestep=state.actor.timestep._replace(
            obs=jnp.asarray(obs[-1]), first=jnp.asarray(first[-1])
        )
    )
    state = state._replace(agent=agent_state, hyper=hyper, actor=actor)
    keys = split_named(jax.random.key(2), learning.key_shapes)
    gradient_step, inputs = learning.prepare(keys, state, rows)
    after, _ = gradient_step(state, jax.tree.map(lambda leaf: leaf[0], inputs))

    grad_weight, grad_bias, count = np.zeros((OBS, ACTIONS)), np.zeros(ACTIONS), 0
    for env in range(ENVS):
        targets = targets_twin(
            np.asarray(rows.reward[:, env]), terminated[:, env], q[:, env].max(axis=-1),
            invalid[:, env], 0.9, 0.65,
        )  # fmt: skip
        for step in range(STEPS):
            if not invalid[step, env]:
                action = int(rows.action[step, env])
                error = q[step, env, action] - targets[step]
                grad_weight[:, action] += error * obs[step, env]
                grad_bias[action] += error
                count += 1
    assert 0 < count < STEPS * ENVS
    learned = after.agent.params["params"]
    np.testing.assert_allclose(learned["weight"], weight - 0.1 * grad_weight / count, atol=1e-5)
    np.testing.assert_allclose(learned["bias"], bias - 0.1 * grad_bias / count, atol=1e-5)


def test_every_row_is_in_exactly_one_minibatch_of_each_pass():
    config = pqn(hidden_sizes=())
    network = make_network(config, noisy().spec)
    agent = make_agent(network, lambda hyper: optax.sgd(0.1), loss="squared", bootstrap="none")
    learning = make_pqn_learning(config, agent, identity_collectives)
    state = quick_jit(make_trainer(config, environment=noisy()).init)(jax.random.key(0))
    no = jnp.zeros((STEPS, ENVS), bool)
    rows = Row(
        obs=jnp.zeros((STEPS, ENVS, 2)), first=no, action=jnp.zeros((STEPS, ENVS), jnp.int32),
        reward=jnp.zeros((STEPS, ENVS)), terminated=no, truncated=no,
        extras=jnp.zeros((STEPS, ENVS)),
    )  # fmt: skip
    keys = split_named(jax.random.key(2), learning.key_shapes)
    _, (_, orders) = learning.prepare(keys, state, rows)
    assert orders.shape == (8, 8)
    for order in orders.reshape(2, -1):
        np.testing.assert_array_equal(np.sort(order), np.arange(32))
    assert (orders[:4] != orders[4:]).any()


def learned_values(environment, **overrides):
    """Train a table of values by PQN and return it, [states, A]."""
    config = pqn(
        hidden_sizes=(), gamma=GAMMA, total_rows=16_000, learning_rate=0.05, num_envs=8,
        learning_rate_schedule="linear", rollout_length=16,
        **{"epsilon_end": 1.0, "trace_decay": 0.0, **overrides},
    )  # fmt: skip
    trainer = make_trainer(config, environment=environment)
    _, end, _, _ = watched_run(trainer, config.num_chunks * config.iterations_per_chunk)
    size = environment.spec.obs_shape[0]
    no = jnp.zeros(size, bool)
    info = trainer.agent.act(jax.random.key(0), end.agent.params, (), jnp.eye(size), no, None)[2]
    return np.asarray(info.q)


def test_with_a_time_limit_the_values_are_those_of_the_endless_problem():
    learned = learned_values(cycle(REWARDS, limit=LIMIT))
    np.testing.assert_allclose(learned[:, 0], endless_values(), rtol=0.02)
    np.testing.assert_allclose(learned[:, 1], endless_values() - 1, rtol=0.02)


@pytest.mark.slow
def test_with_a_time_limit_as_terminal_state_the_values_are_far_off():
    wrong = learned_values(limit_as_terminal(cycle(REWARDS, limit=LIMIT)))
    assert (wrong[:, 0] < 0.7 * endless_values()).all()


@pytest.mark.slow
def test_with_traces_the_greedy_values_respect_the_end_of_episodes():
    # Random actions at first, so that every action is tried. None later, because a trace also
    # passes through actions that are not greedy.
    traces = {"trace_decay": 0.8, "epsilon_end": 0.0, "epsilon_decay_rows": 4_000}
    learned = learned_values(cycle(REWARDS, limit=LIMIT), **traces)
    np.testing.assert_allclose(learned.max(axis=1), endless_values(), rtol=0.02)
    rewards = (1.0, 2.0, 3.0, 4.0, 100.0)
    learned = learned_values(cycle(rewards, limit=None, terminal_at=4), **traces)[:4]
    value = [sum(GAMMA ** (k - s) * rewards[k] for k in range(s, 4)) for s in range(4)]
    np.testing.assert_allclose(learned.max(axis=1), value, rtol=0.02)


@pytest.mark.slow
def test_pqn_learns_from_stacked_frames():
    trainer = make_trainer(pqn(frame_stack=3), environment=noisy())
    start, end, metrics, _ = watched_run(trainer, 3)
    assert int(metrics.skipped.sum()) == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.agent.params, end.agent.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minibatches": 5}, "minibatches=5: must be a divisor of the 32 rows"),
        ({"loss": "categorical"}, "loss='categorical': must be a loss of TD errors"),
        ({"n_step": 3}, "n_step=3: must be 1 with algorithm='pqn'"),
        ({"replay": "prioritized"}, "replay='prioritized': must be uniform with algorithm='pqn'"),
        ({"target_tau": 0.01}, "target_tau=0.01: must be None with algorithm='pqn'"),
        ({"algorithm": "dqn", "warmup_rows": 320, "batch_size": 8}, "must be .* unless algorithm"),
        ({"total_rows": 16}, "total_rows=16: must be at least the 32 rows of an iteration"),
    ],
)
def test_options_without_effect_or_in_conflict_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        pqn(**fields)
