"""Custom scalars of a configuration."""

import re

import pytest

from jaxdqn.config.config import Config, from_dict, to_dict
from jaxdqn.parallel.learners import learner_hypers
from jaxdqn.training.hyper import hyper_from


def test_custom_scalars_are_entries_of_hyper_and_survive_json():
    config = Config(extra_hyper=("bonus=0.5", "other-scale=2"))
    assert hyper_from(config).extra == {"bonus": 0.5, "other_scale": 2}
    assert from_dict(to_dict(config)) == config
    assert hyper_from(Config()).extra == {}


def test_a_sweep_varies_a_custom_scalar_beside_an_option():
    config = Config(extra_hyper=("bonus=0.5", "other=2"), sweep=("bonus=0,1", "gamma=0.9,0.8"))
    hypers = learner_hypers(config)
    assert hypers.extra["bonus"].tolist() == [0, 0, 1, 1]
    assert hypers.extra["other"].tolist() == [2, 2, 2, 2]
    assert hypers.gamma.tolist() == pytest.approx([0.9, 0.8, 0.9, 0.8])
    assert config.sweep_points[2] == {"bonus": 1, "gamma": 0.9}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra_hyper": ("bonus",)}, "extra_hyper='bonus': must be NAME=VALUE with a number"),
        ({"extra_hyper": ("a b=1",)}, "extra_hyper='a b=1': must be NAME=VALUE"),
        ({"extra_hyper": ("gamma=1",)}, "extra_hyper='gamma=1': must be a new name; gamma is an"),
        ({"extra_hyper": ("x=1", "x=2")}, "extra_hyper='x=2': must be the only value of x"),
        ({"extra_hyper": ("x=inf",)}, "extra_hyper='x=inf': must be finite"),
        ({"sweep": ("bonus=1,2",)}, "sweep='bonus=1,2': must be of a field; nearest:"),
        (
            {"extra_hyper": ("x=1",), "sweep": ("x=1,nan",)},
            "sweep='x=1,nan': extra_hyper='x=nan': must be finite",
        ),
    ],
)
def test_invalid_custom_scalars_are_rejected(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**fields)
