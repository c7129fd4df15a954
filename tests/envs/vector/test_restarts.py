"""Restarts of environments on the host."""

import traceback

import numpy as np
import pytest

from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.restarts import EnvironmentFailed, Restarts
from tests.toys import cycle
from tests.training.test_vector_trainer import OnHost


def test_restarts_are_numbered_up_to_the_limit_and_recorded_in_order():
    restarts = Restarts(2)
    failures = [EnvironmentFailed(str(number)) for number in range(4)]
    assert [restarts.take(failed) for failed in failures] == [1, 2, None, None]
    assert list(restarts.failures) == failures[:2]
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
