"""Names of environments on the host, and packages that are not installed."""

import sys

import pytest

from jaxdqn.envs.vector import host_environment


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "ale:pong",
            "ale_py",
            "env='ale:pong': needs ale-py, which is not installed; pip install \"jaxdqn[host]\"",
        ),
        (
            "envpool:CartPole-v1",
            "envpool",
            "env='envpool:CartPole-v1': needs EnvPool, which is not installed; "
            'pip install "jaxdqn[envpool]"',
        ),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(
    monkeypatch, name, module, message
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="not installed") as raised:
        host_environment(name, {})
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["ale:pong", "envpool:CartPole-v1"])
def test_processes_are_rejected_where_the_environments_step_in_threads(name):
    with pytest.raises(ValueError, match=f"^env_processes=True: must .* env='{name}'"):
        host_environment(name, {}, processes=True)
