"""Restarts of environments on the host: one limit, also with several threads."""

import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.restarts import EnvironmentFailed, Restarts
from tests.toys import cycle
from tests.training.test_vector_trainer import OnHost


def test_threads_together_get_no_more_restarts_than_the_limit():
    restarts = Restarts(5)
    failures = [EnvironmentFailed(str(number)) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(restarts.take, failures))
    taken = {number: failed for number, failed in zip(numbers, failures, strict=True) if number}
    assert sorted(taken) == [1, 2, 3, 4, 5]
    assert list(restarts.failures) == [taken[number] for number in range(1, 6)]
    assert Restarts().take(failures[0]) is None


def test_a_restart_that_fails_raises_both_failures_and_the_first_is_recorded():
    environment, made = cycle([1.0, 2.0], limit=4), []

    class Broken(OnHost):
        def step(self, actions):
            raise OSError("licence lost")

    def make(num_envs):
        made.append(num_envs)
        if len(made) > 1:
            raise LookupError("no licence left")
        return Broken(environment, num_envs)

    restarts = Restarts(3)
    envs = CheckedEnvironments(HostEnvironment(environment.spec, make), 2, restarts)
    envs.reset(0)
    with pytest.raises(EnvironmentFailed, match="start failed: LookupError: no licence") as raised:
        envs.step(np.zeros(2, np.int32))
    assert [str(failed) for failed in restarts.failures] == [
        "env='cycle': step failed: OSError: licence lost"
    ]
    trace = "".join(traceback.format_exception(raised.value.__cause__))
    assert "licence lost" in trace
    assert "no licence left" in trace
