"""A platform that JAX cannot start is named in one line."""

import jax
import pytest

from jaxdqn.config.config import Config
from jaxdqn.parallel.platforms import check_platforms
from jaxdqn.run.runner import run
from tests.toys import noisy


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no\n GPU")], ids=repr)
def test_a_platform_that_cannot_start_is_one_line(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    reason = r" \(no GPU\)" if str(error) else ""
    wanted = rf"^JAX_PLATFORMS=.*: must name platforms .* this machine{reason}; cpu always can"
    with pytest.raises(ValueError, match=wanted) as raised:
        check_platforms()
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=wanted):
        run(Config(), environment=noisy())


def test_the_platform_of_the_tests_starts():
    check_platforms()
