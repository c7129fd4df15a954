"""Former names of options are accepted for one release; a warning gives the current name."""

import warnings

import pytest

from jaxdqn.config.config import Config, from_dict, replace
from jaxdqn.config.former_names import FORMER_NAMES
from jaxdqn.config.presets import preset

NAMES = [
    ("total_steps", "total_rows", 50_000),
    ("warmup_steps", "warmup_rows", 2_048),
    ("epsilon_decay_steps", "epsilon_decay_rows", 9_000),
    ("adam_epsilon", "optimizer_epsilon", 1e-4),
]
VALUES = [(False, "never"), (True, "solved")]
WAYS = {
    "Config": lambda values: Config(**values),
    "replace": lambda values: replace(Config(), **values),
    "preset": lambda values: preset("cartpole", **values),
}


def test_the_former_names_are_those_of_the_previous_release():
    names = {former: current for former, current, _ in NAMES}
    assert names | {"stop_when_solved": "stop_when"} == FORMER_NAMES


@pytest.mark.parametrize(("former", "current"), VALUES)
@pytest.mark.parametrize("way", WAYS)
def test_a_former_value_is_replaced_by_the_present_one(way, former, current):
    wanted = f"^stop_when_solved is now stop_when='{current}'$"
    with pytest.warns(DeprecationWarning, match=wanted) as caught:
        config = WAYS[way]({"solve_return": 1.0, "stop_when_solved": former})
    assert config.stop_when == current
    assert [warning.filename for warning in caught] == [__file__]
    stored = from_dict({"solve_return": 1.0, "stop_when_solved": former})
    assert stored.stop_when == current


@pytest.mark.parametrize(("former", "current", "value"), NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_a_former_keyword_is_accepted_with_a_warning_at_the_call(way, former, current, value):
    with pytest.warns(DeprecationWarning, match=f"^{former} is now {current}$") as caught:
        config = WAYS[way]({former: value})
    assert getattr(config, current) == value
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(("former", "current", "value"), NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_both_names_at_once_are_rejected_by_name(way, former, current, value):
    message = f"^{former}={value}: must be omitted; {current} is its new name and is given too$"
    with pytest.raises(ValueError, match=message):
        WAYS[way]({former: value, current: value})


@pytest.mark.parametrize(("former", "current", "value"), NAMES)
def test_a_stored_configuration_is_read_under_its_former_names_without_a_warning(
    former, current, value
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(from_dict({former: value}), current) == value
    with pytest.raises(ValueError, match=f"^{former}={value}: must be omitted; "):
        from_dict({former: value, current: value})


def test_current_names_and_positional_arguments_are_treated_as_before():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config(total_rows=50_000)
    with pytest.raises(TypeError):
        Config("CartPole-v1")
    with pytest.raises(TypeError, match="total_step"):
        Config(total_step=3)
