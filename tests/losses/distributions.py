"""Random batches, and a process whose return distribution is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from tests.toys import bitwise_jit

# One state with a transition to itself and a normal reward of mean 0.4 and deviation 0.6. Its
# return is normal, with mean 0.4 / (1 - g) and deviation 0.6 / sqrt(1 - g^2).
GAMMA, MEAN, DEVIATION = 0.5, 0.4, 0.6


RETURNS = stats.norm(MEAN / (1 - GAMMA), DEVIATION / np.sqrt(1 - GAMMA**2))


def batch(seed=0, size=32, actions=4, atoms=17):
    """Return random transitions with a distribution for each action."""
    rng = np.random.default_rng(seed)
    return {
        "logits_tm1": rng.normal(size=(size, actions, atoms)).astype(np.float32) * 2,
        "logits_t": rng.normal(size=(size, actions, atoms)).astype(np.float32) * 2,
        "a_tm1": rng.integers(0, actions, size).astype(np.int32),
        "r_t": rng.normal(size=size).astype(np.float32) * 3,
        "discount_t": rng.choice([0.0, 0.9, 0.97], size).astype(np.float32),
        "selector": rng.normal(size=(size, actions)).astype(np.float32),
    }


def descend(loss, start, *, steps, rate):
    """Run stochastic gradient descent with fresh rewards and a falling step size."""

    @bitwise_jit  # optimised, since it runs for long
    def run(key):
        def update(params, inputs):
            key, step = inputs
            rewards = MEAN + DEVIATION * jax.random.normal(key, (64,))
            grads = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, rewards)))(params)
            step_size = rate / (1.0 + 10.0 * step / steps)
            return params - step_size * grads, None

        inputs = (jax.random.split(key, steps), jnp.arange(steps, dtype=jnp.float32))
        return jax.lax.scan(update, start, inputs)[0]

    return np.asarray(run(jax.random.key(0)))
