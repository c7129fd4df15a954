"""Gradients, and updates of the optimiser chain and of its NumPy twins."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.types import Hyper

SHAPES = {"a": (3, 4), "b": (5,), "c": ()}
BASE = Config(learning_rate=0.1, optimizer="adam")


def hyper_of(learning_rate=0.1, clip_value=np.inf, clip_norm=np.inf):
    """Return hyper-parameters that are zero but for these."""
    values = dict.fromkeys(SWEEPABLE, jnp.float32(0))
    values |= {"learning_rate": learning_rate, "clip_value": clip_value, "clip_norm": clip_norm}
    return Hyper(**{name: jnp.float32(value) for name, value in values.items()})


def random_gradients(steps=4, seed=0, scale=1.0):
    """Return a list of gradients of ``SHAPES``, normally distributed."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: (scale * rng.normal(size=shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in range(steps)
    ]


def updates_of(config, gradients, hyper=None, collectives=identity_collectives):
    """Return the updates of the gradients, applied one after the other."""
    hyper = hyper_of() if hyper is None else hyper
    optimizer = make_optimizer(config, collectives)

    @jax.jit
    def run(hyper, gradients):
        state = optimizer(hyper).init(jax.tree.map(jnp.zeros_like, gradients[0]))
        updates = []
        for gradient in gradients:
            update, state = optimizer(hyper).update(gradient, state)
            updates.append(update)
        return updates

    return run(hyper, gradients)


def assert_same(ours, expected, rtol=1e-5, atol=1e-7):
    for one, other in zip(ours, expected, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other
        )


def tree_map(function, *trees):
    return jax.tree.map(function, *trees)


def norm_of(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def adam_twin(gradients, rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    mu = nu = tree_map(np.zeros_like, gradients[0])
    for t, gradient in enumerate(gradients, 1):
        mu = tree_map(lambda m, g: b1 * m + (1 - b1) * g, mu, gradient)
        nu = tree_map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, gradient)
        yield tree_map(
            lambda m, v, t=t: -rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps), mu, nu
        )


def rmsprop_twin(gradients, rate=0.1, decay=0.9, eps=1e-8):
    nu = tree_map(np.zeros_like, gradients[0])
    for gradient in gradients:
        nu = tree_map(lambda v, g: decay * v + (1 - decay) * g**2, nu, gradient)
        yield tree_map(lambda v, g: -rate * g / (np.sqrt(v) + eps), nu, gradient)


def radam_twin(gradients, rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """Liu et al. 2020, algorithm 2, with the threshold of 5."""
    mu = nu = tree_map(np.zeros_like, gradients[0])
    limit = 2 / (1 - b2) - 1
    for t, gradient in enumerate(gradients, 1):
        mu = tree_map(lambda m, g: b1 * m + (1 - b1) * g, mu, gradient)
        nu = tree_map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, gradient)
        length = limit - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            yield tree_map(lambda m, t=t: -rate * m / (1 - b1**t), mu)
            continue
        r = np.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
        yield tree_map(
            lambda m, v, t=t, r=r: -rate * r * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps),
            mu,
            nu,
        )


TWINS = {"adam": adam_twin, "rmsprop": rmsprop_twin, "radam": radam_twin}
# RAdam subtracts almost equal numbers near 1999, which loses digits in float32 near 5.
RTOL = {"adam": 1e-5, "rmsprop": 1e-5, "radam": 1e-2}
