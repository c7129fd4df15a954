"""Shares of the time of chunks with environments on the host."""

import time

import jax
import pytest

from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.training.host_times import HostTimes
from jaxdqn.training.hyper import hyper_from
from tests.toys import tiny
from tests.training.test_vector_trainer import ENVIRONMENT, OnHost, runner_of


def test_shares_are_of_the_duration_of_the_chunks_since_the_last_call():
    times = HostTimes()
    assert times.shares() == {}
    times.env, times.act, times.wait, times.learn, times.total = 1.0, 2.0, 0.5, 3.0, 4.0
    assert times.shares() == {"env_share": 0.25, "act_share": 0.5, "wait_share": 0.125}
    assert times.shares() == {}


def test_the_share_of_learning_is_known_if_calls_of_programs_block():
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    times = HostTimes()
    times.learn, times.total = 3.0, 4.0
    assert times.shares()["learn_share"] == 0.75


class Slow(OnHost):
    """Environments that take at least three milliseconds for a step."""

    def step(self, actions):
        time.sleep(0.003)
        return super().step(actions)


@pytest.mark.parametrize("overlap", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_parts_of_a_chunk_are_measured(overlap, monkeypatch):
    """The learner takes longer than an iteration of acting, so that acting waits."""
    host = HostEnvironment(ENVIRONMENT.spec, lambda num_envs: Slow(ENVIRONMENT, num_envs))
    config = tiny(rollout_length=2, gradient_steps=1, warmup_rows=32, overlap=overlap)
    runner = runner_of(config, host)
    learn = runner._programs.learn

    def slow_learn(*arguments):
        time.sleep(0.05)
        return learn(*arguments)

    runner._programs = runner._programs._replace(learn=slow_learn)
    monkeypatch.setattr("jaxdqn.training.host_times.dispatches_asynchronously", lambda: False)
    try:
        state = runner.init(jax.random.key(0), hyper_from(config))
        assert runner.times.shares() == {}  # the warm-up does not count
        state, _ = runner.chunk(state, 4)
        runner.times.clear()
        started = time.perf_counter()
        runner.chunk(state, 8)
        seconds = time.perf_counter() - started
        measured = runner.times.total
        shares = runner.times.shares()
    finally:
        runner.close()
    assert measured == pytest.approx(seconds, rel=0.2)
    # 16 vector steps; 8 times the learner, of which the thread that acts waits for the most part.
    assert shares["env_share"] * measured >= 16 * 0.003
    assert shares["learn_share"] * measured >= 8 * 0.05
    assert shares["wait_share"] * measured >= (0.1 if overlap else 8 * 0.05)
    assert 0 < shares["act_share"] < 1
    assert sum(shares[f"{name}_share"] for name in ("env", "act", "wait")) <= 1
