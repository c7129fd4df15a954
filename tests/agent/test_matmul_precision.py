"""The precision of products reaches every product of the compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxdqn.agent.matmul_precision import with_matmul_precision
from jaxdqn.config.config import replace
from jaxdqn.config.presets import preset
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.trainer import make_trainer
from tests.toys import tiny

MLIR = {"float32": "HIGHEST", "tensorfloat32": "HIGH"}
"""Precision of a lowered product by that of the option."""

BREAKOUT = {"env": "Breakout-MinAtar", "hidden_sizes": (8,)}
CONFIGS = {
    "mlp": tiny(double=True),
    "patches": tiny(convolution="patches", **BREAKOUT),
    "convolution": tiny(convolution="lax", **BREAKOUT),
    "either": tiny(**BREAKOUT),
    "implicit quantiles, noise": tiny(loss="implicit_quantile", noisy=True, quantiles=4),
    "prioritised": tiny(replay="prioritized", normalize_gradients=True, guard="skip"),
    "lstm": tiny(recurrent="lstm", recurrent_size=4, sequence_length=4, burn_in=2),
    "pqn": replace(preset("pqn"), num_envs=4, rollout_length=4, minibatches=2),
}


def products(text):
    """Return the precisions of the products and convolutions of a lowered program."""
    lines = [line for line in text.splitlines() if "dot_general" in line or "convolution(" in line]
    found = [re.search(r"precision(?:_config)? = \[([^\]]*)\]", line) for line in lines]
    return ["" if match is None else match[1].replace("#stablehlo<precision ", "")
            for match in found]  # fmt: skip


def lowered(config, precision, name):
    config = replace(config, matmul_precision=precision)
    trainer = make_trainer(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(trainer.init, key)
    if name == "init":
        return jax.jit(trainer.init).lower(key).as_text()
    if name == "chunk":
        return jax.jit(trainer.chunk(2)).lower(state).as_text()
    evaluate = make_evaluator(trainer.agent, trainer.environment, 2, frame_stack=1)
    return jax.jit(evaluate).lower(state.agent.params, key).as_text()


FAST = {("mlp", "chunk"), ("mlp", "evaluation"), ("convolution", "chunk"), ("lstm", "chunk")}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if (kind, name) in FAST else pytest.mark.slow)
        for kind in CONFIGS
        for name in ("init", "chunk", "evaluation")
    ],
)
def test_every_product_of_acting_and_learning_has_the_precision(kind, name):
    found = products(lowered(CONFIGS[kind], "float32", name))
    assert found or name == "init"
    assert all(each.count("HIGHEST") == 2 for each in found), found


@pytest.mark.parametrize("precision", MLIR)
def test_each_precision_is_that_of_the_lowered_products(precision):
    found = products(lowered(CONFIGS["mlp"], precision, "chunk"))
    assert found
    wanted = re.compile(rf"\b{MLIR[precision]}\b")
    assert all(len(wanted.findall(each)) == 2 for each in found), found


def test_by_default_the_precision_is_that_of_jax():
    assert not any("HIGH" in each for each in products(lowered(CONFIGS["mlp"], "default", "chunk")))
    with jax.default_matmul_precision("highest"):
        found = products(lowered(CONFIGS["mlp"], "default", "chunk"))
    assert found
    assert all(each.count("HIGHEST") == 2 for each in found)


def test_the_precision_of_the_run_takes_precedence_over_that_of_the_process():
    with jax.default_matmul_precision("highest"):
        found = products(lowered(CONFIGS["mlp"], "tensorfloat32", "chunk"))
    assert found
    assert not any("HIGHEST" in each for each in found)


def test_it_reaches_the_products_of_a_custom_agent():
    agent = make_trainer(CONFIGS["mlp"]).agent._replace(
        act=lambda key, params, carry, obs, first, exploration: obs @ obs.T,
        gradient=None,
        apply=None,
    )
    act = with_matmul_precision(agent, "float32").act
    text = jax.jit(lambda obs: act(None, None, (), obs, None, None)).lower(jnp.ones((2, 3)))
    assert products(text.as_text())[0].count("HIGHEST") == 2
    assert with_matmul_precision(agent, "default") is agent
