"""Policies loaded from a run directory."""

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.export.policy import load_policy
from tests.run.test_run import compiled_once, finished  # noqa: F401 (fixtures)
from tests.toys import noisy


def test_a_loaded_policy_is_greedy_in_plain_python(finished):  # noqa: F811 (the fixture)
    policy = load_policy(finished.out, "last", environment=noisy())
    obs = np.random.default_rng(0).uniform(1, 9, (20, 2)).astype(np.float32)
    params = jax.tree.map(np.asarray, finished.result.state.agent.params)
    q = q_by_hand(params, obs)
    expected = np.argmax(q, axis=-1)
    assert len(set(expected)) == 2
    actions = policy(obs)
    assert type(actions) is np.ndarray
    np.testing.assert_array_equal(actions, expected)
    assert type(policy(list(obs[0]))) is int
    assert [policy(each) for each in obs] == list(expected)
    with pytest.raises(ValueError, match=r"obs.shape=\(3,\): must be \(2,\)"):
        policy(np.zeros(3))


def q_by_hand(params, obs):
    """Apply the dense layers, found by their widths, with a ReLU between them."""
    layers = {
        leaf.shape[0]: (leaf, params_bias(params, leaf.shape[1]))
        for leaf in jax.tree.leaves(params)
        if leaf.ndim == 2
    }
    hidden = np.maximum(obs @ layers[2][0] + layers[2][1], 0)
    return hidden @ layers[16][0] + layers[16][1]


def params_bias(params, width):
    (bias,) = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (width,)]
    return bias


@pytest.mark.parametrize(
    ("which", "message"),
    [("bast", "which='bast': must be one of best, last"), ("best", "must be a run directory")],
)
def test_a_policy_that_does_not_exist_is_rejected(tmp_path, which, message):
    with pytest.raises(ValueError, match=message):
        jaxdqn.load_policy(tmp_path, which)
