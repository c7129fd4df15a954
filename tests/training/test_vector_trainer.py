"""The trainer for environments on the host trains like the one for environments on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_programs import jit_vector_programs
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import make_single_trainer, make_vector_trainer
from jaxdqn.types import counter_int
from tests.toys import OPTIMISED, QUICK, assert_identical, bitwise_jit, cycle, quick_jit, tiny

ENVIRONMENT = cycle([1.0, 0.5, 2.0, 0.0], limit=7)
"""An environment without random numbers, so that it is the same on the host."""


class OnHost:
    """An environment of the device, stepped from the host."""

    def __init__(self, environment, num_envs):
        self._reset = jax.jit(jax.vmap(environment.reset))
        self._step = jax.jit(jax.vmap(environment.step))
        self._keys = jax.random.split(jax.random.key(0), num_envs)
        self.closed = False

    def reset(self, seed):
        self._state, timestep = self._reset(self._keys)
        return jax.device_get(timestep)

    def step(self, actions):
        assert isinstance(actions, np.ndarray)
        self._state, timestep = self._step(self._keys, self._state, actions)
        return jax.device_get(timestep)

    def close(self):
        self.closed = True


def on_host(environment=ENVIRONMENT):
    return HostEnvironment(environment.spec, lambda num_envs: OnHost(environment, num_envs))


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def runner_of(config, environment=None, options=QUICK):
    environment = environment or on_host()
    trainer = make_vector_trainer(config, environment)
    return VectorRunner(trainer, jit_vector_programs(trainer, options))


CASES = {
    "dqn": {},
    "several steps": {"rollout_length": 4, "gradient_steps": 2, "warmup_rows": 48},
    "stack, n-step, prioritised": {"frame_stack": 3, "n_step": 2, "replay": "prioritized"},
    "pqn": {
        "algorithm": "pqn", "rollout_length": 8, "minibatches": 4,
        "replay_capacity": type(tiny()).replay_capacity, "warmup_rows": type(tiny()).warmup_rows,
        "batch_size": type(tiny()).batch_size,
    },
    "recurrent": {"recurrent": "gru", "recurrent_size": 4, "burn_in": 1, "sequence_length": 3},
    "normalised": {"normalize_observations": True},
    "noisy": {"noisy": True},
    "repeated actions, ladder": {
        "epsilon_schedule": "exponential", "epsilon_end": 0.1, "epsilon_repeat": 0.5,
        "epsilon_ladder": 7.0,
    },
}  # fmt: skip
FAST = ("several steps",)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(fields, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, fields in CASES.items()
    ],
)
def started(request):
    """Return the fields, the runner, the trainer on the device, and the first state of both."""
    fields = request.param
    config = tiny(hidden_sizes=(8,), overlap=False, chunk_iterations=4, **fields)
    runner = runner_of(config, options=OPTIMISED)
    key = jax.random.key(3)
    trainer = make_trainer(tiny(hidden_sizes=(8,), **fields), environment=ENVIRONMENT)
    return fields, runner, trainer, runner.init(key, None), bitwise_jit(trainer.init)(key)


def without_environment(state):
    return state._replace(actor=state.actor._replace(env_state=()))


def test_the_warm_up_is_bitwise_that_of_the_same_environment_on_the_device(started):
    fields, _, _, host, device = started
    # The carry of a cell is computed in another program, and rounded differently.
    same = assert_close if "recurrent" in fields else assert_identical
    same(host, without_environment(device))


def test_without_overlap_a_run_is_bitwise_that_of_the_same_environment_on_the_device(started):
    fields, runner, trainer, host, device = started
    if "recurrent" in fields:
        return
    expected, metrics = bitwise_jit(trainer.chunk(9))(device)
    host, (reported, counters) = runner.chunk(jax.tree.map(jnp.copy, host), 9)
    assert_identical(host, without_environment(expected))
    assert_identical(counters, expected.counters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), reported, metrics)
    assert reported.episodes > 0


@pytest.mark.slow
def test_extras_of_rows_have_the_episode_on_the_host_as_on_the_device():
    fields = {
        "rollout_length": 3, "warmup_rows": 48, "chunk_iterations": 2, "hidden_sizes": (8,),
        "replay_capacity": 252,
    }  # fmt: skip

    def learning(config, agent, collectives):
        made = jaxdqn.make_learning(config, agent, collectives)
        return made._replace(extras=lambda actor, info: actor.episode)

    config = tiny(overlap=False, **fields)
    trainer = make_vector_trainer(config, on_host(), learning=learning)
    runner = VectorRunner(trainer, jit_vector_programs(trainer, QUICK))
    host, _ = runner.chunk(runner.init(jax.random.key(3), None), 5)
    trainer = make_trainer(tiny(**fields), environment=ENVIRONMENT, learning=learning)
    device = quick_jit(trainer.chunk(5))(quick_jit(trainer.init)(jax.random.key(3)))[0]
    stored = device.replay.storage.extras
    assert np.max(stored.episode_length) == 6
    jax.tree.map(np.testing.assert_array_equal, host.replay.storage.extras, stored)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_chunk_may_be_divided_into_parts(impl):
    config = tiny(
        hidden_sizes=(8,), noisy=True, overlap=False, chunk_iterations=4, rollout_length=2,
        warmup_rows=48,
    )  # fmt: skip
    ends = []
    for parts in ((4,), (1, 3)):
        runner = runner_of(config, options=OPTIMISED)
        state = runner.init(jax.random.key(3, impl=impl), None)
        for iterations in parts:
            state, _ = runner.chunk(state, iterations)
        ends.append(state)
    assert_identical(*ends)


@pytest.mark.slow
def test_another_device_may_act():
    config = tiny(hidden_sizes=(8,), recurrent="gru", recurrent_size=4, burn_in=1,
                  sequence_length=3)  # fmt: skip
    acting, learning = jax.devices()[1], jax.devices()[0]
    ends = []
    for device in (None, acting):
        trainer = make_vector_trainer(config, on_host())
        runner = VectorRunner(trainer, jit_vector_programs(trainer, QUICK), device)
        where, act = [], runner._programs.advance

        def watched(acting, *arguments, act=act, where=where):
            acting, extras = act(acting, *arguments)
            where.append(acting.action.devices())
            return acting, extras

        runner._programs = runner._programs._replace(advance=watched)
        state, _ = runner.chunk(runner.init(jax.random.key(3), None), 5)
        assert where[-1] == {device or learning}
        ends.append(jax.device_get(without_keys(state)))
        assert all(leaf.devices() == {learning} for leaf in jax.tree.leaves(state.agent))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def without_keys(state):
    return state._replace(key=jax.random.key_data(state.key))


def test_with_overlap_an_iteration_acts_on_parameters_that_are_one_iteration_old():
    config = tiny(hidden_sizes=(8,), exploration="boltzmann", temperature=0.5)
    runner = runner_of(config)
    acted, act = [], runner._act

    def watched(state, position, draws, params):
        acted.append(jax.device_get(params))
        return act(state, position, draws, params)

    runner._act = watched
    state = runner.init(jax.random.key(0), None)
    newest = []
    acted.clear()
    for _ in range(3):  # chunks of one iteration: the parameters are kept between chunks
        newest.append(jax.device_get(state.agent.params))
        state, _ = runner.chunk(state, 1)
    state, _ = runner.chunk(state, 2)
    assert_identical(acted[0], newest[0])
    assert_identical(acted[1], newest[0])
    assert_identical(acted[2], newest[1])
    assert_identical(acted[3], newest[2])
    assert counter_int(state.counters.gradient_steps) == 5
    assert counter_int(state.counters.rows) == 32 + 5 * 4


def test_a_restarted_state_opens_an_episode_in_every_environment_and_keeps_the_rest():
    runner = runner_of(tiny(frame_stack=2))
    state = runner.init(jax.random.key(0), None)
    state, _ = runner.chunk(state, 3)
    before = jax.tree.map(np.asarray, (state.agent.params, state.replay, state.counters))
    state = runner.restart(state)
    assert state.actor.timestep.first.all()
    np.testing.assert_array_equal(state.actor.frames[..., 0], 0)
    np.testing.assert_array_equal(state.actor.episode.episode_length, 0)
    assert_identical((state.agent.params, state.replay, state.counters), before)
    state, (metrics, _) = runner.chunk(state, 3)
    assert np.isfinite(metrics.loss)
    runner.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_seeds", 2), ("full_action_set", True), ("reset", "pooled")],
)
def test_options_that_need_the_device_are_rejected_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field}=.* with an environment on the host$"):
        make_vector_trainer(tiny(**{field: value}), on_host())


def test_a_trainer_of_the_device_rejects_an_environment_on_the_host_and_overlap():
    with pytest.raises(ValueError, match=r"^environment='cycle': must be on the device"):
        make_trainer(tiny(), environment=on_host())
    with pytest.raises(ValueError, match=r"^overlap=False: must be True with an environment on"):
        make_trainer(tiny(overlap=False), environment=ENVIRONMENT)
    assert make_single_trainer(tiny(), environment=on_host()).environment.spec == ENVIRONMENT.spec
