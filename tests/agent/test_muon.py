"""Muon against NumPy for matrices, and against optax's Nadam for the other parameters."""

import jax
import numpy as np
import optax

from jaxdqn.config.config import replace
from tests.optimizers import BASE, assert_same, hyper_of, random_gradients, updates_of


def _muon(gradients, rate=0.1, beta=0.95, eps=1e-8):
    """Jordan et al. 2024: Nesterov momentum, orthogonalised by five Newton-Schulz steps."""
    momentum = np.zeros_like(gradients[0])
    for t, gradient in enumerate(gradients, 1):
        momentum = beta * momentum + (1 - beta) * gradient
        ahead = beta * momentum / (1 - beta ** (t + 1)) + (1 - beta) * gradient / (1 - beta**t)
        x = ahead / (np.linalg.norm(ahead) + eps)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        yield -rate * 0.2 * np.sqrt(max(x.shape)) * x


def test_muon_orthogonalises_matrices():
    config = replace(BASE, optimizer="muon")
    gradients = random_gradients()
    updates = updates_of(config, gradients)
    expected = list(_muon([gradient["a"] for gradient in gradients]))
    assert_same([update["a"] for update in updates], expected, rtol=1e-3, atol=1e-4)
    for update in updates:
        singular = np.linalg.svd(update["a"], compute_uv=False) / (0.1 * 0.2 * np.sqrt(4))
        assert ((singular > 0.6) & (singular < 1.3)).all()


def test_muon_is_adam_with_nesterov_momentum_for_other_parameters():
    gradients = random_gradients()
    updates = updates_of(replace(BASE, optimizer="muon", clip_norm=1.0), gradients,
                       hyper_of(clip_norm=np.float32(1e9)))  # fmt: skip
    nadam = optax.nadam(0.1)
    with jax.numpy_dtype_promotion("standard"):
        state = nadam.init(gradients[0])
        for gradient, update in zip(gradients, updates, strict=True):
            expected, state = nadam.update(gradient, state)
            for name in ("b", "c"):
                np.testing.assert_allclose(update[name], expected[name], rtol=1e-4, atol=1e-6)
