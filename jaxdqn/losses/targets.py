"""Bootstrap targets, one example at a time."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxdqn.backend_choices import choices
from jaxdqn.losses.legal import is_masked, some_legal
from jaxdqn.types import Array, PyTree


def bootstrapped(r_t: Array, discount_t: Array, value: Array) -> Array:
    """Return ``r_t + discount_t * value``, or ``r_t`` where the discount is 0.

    The observation after a terminal state may be arbitrary, and therefore its value too. Because
    NaN times 0 is NaN, such a value is replaced instead of multiplied by 0.

    Args:
      r_t: float32, the return.
      discount_t: float32, of the same shape.
      value: float32, the bootstrap value, of the same shape.
    """
    return r_t + discount_t * jnp.where(discount_t == 0, 0.0, value)


def q_learning_target(r_t: Array, discount_t: Array, q_t: Array) -> Array:
    """Return ``r_t + discount_t * max_a q_t[a]`` (Mnih et al. 2015); no gradient flows.

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      q_t: ``[A]`` float32, the target network at the bootstrap observation.
    """
    chex.assert_rank([r_t, discount_t, q_t], [0, 0, 1])
    return jax.lax.stop_gradient(bootstrapped(r_t, discount_t, jnp.max(q_t)))


def double_q_target(r_t: Array, discount_t: Array, q_t_value: Array, q_t_selector: Array) -> Array:
    """Return ``r_t + discount_t * q_t_value[argmax_a q_t_selector[a]]``; no gradient flows.

    Double Q-learning (van Hasselt et al. 2016, eq. 4).

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      q_t_value: ``[A]`` float32, the target network, which evaluates.
      q_t_selector: ``[A]`` float32, the online network, which chooses.
    """
    chex.assert_rank([r_t, discount_t, q_t_value, q_t_selector], [0, 0, 1, 1])
    chosen = jnp.argmax(q_t_selector)
    return jax.lax.stop_gradient(bootstrapped(r_t, discount_t, q_t_value[chosen]))


def soft_q_target(r_t: Array, discount_t: Array, q_t: Array, temperature: Array) -> Array:
    """Return ``r_t + discount_t * temperature * log sum_a exp(q_t[a] / temperature)``.

    ``temperature * log sum_a ...`` is the soft value: the expectation of ``q_t`` under the softmax
    (Boltzmann) policy, plus ``temperature`` times the entropy of that policy (Haarnoja et al. 2017,
    eq. 3).
    No gradient flows.

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      q_t: ``[A]`` float32, the target network at the bootstrap observation.
      temperature: ``[]`` float32, above 0, in units of Q; the limit towards 0 is
        ``q_learning_target``.
    """
    chex.assert_rank([r_t, discount_t, q_t, temperature], [0, 0, 1, 0])
    value = temperature * jax.nn.logsumexp(q_t / temperature)
    return jax.lax.stop_gradient(bootstrapped(r_t, discount_t, value))


def munchausen_bonus(
    q_tm1: Array, a_tm1: Array, temperature: Array, scale: Array, clip_min: Array
) -> Array:
    """Return ``scale * clip(temperature * log pi(a_tm1), clip_min, 0)``.

    Munchausen reinforcement learning (Vieillard et al. 2020, eq. 2, and section 4).

    ``pi`` is the softmax policy of the *target* network at the observation where the action
    was taken. Add the bonus to the reward, and bootstrap with ``soft_q_target``. No gradient
    flows.

    Args:
      q_tm1: ``[A]`` float32, the target network at the observation of ``a_tm1``.
      a_tm1: ``[]`` int32
      temperature: ``[]`` float32, above 0; 0.03 in the paper.
      scale: ``[]`` float32; 0.9 in the paper.
      clip_min: ``[]`` float32, below 0; -1 in the paper.
    """
    chex.assert_rank([q_tm1, a_tm1, temperature, scale, clip_min], [1, 0, 0, 0, 0])
    # Not temperature * log(softmax), which loses all digits if pi is small.
    scaled_log_policy = q_tm1[a_tm1] - temperature * jax.nn.logsumexp(q_tm1 / temperature)
    return jax.lax.stop_gradient(scale * jnp.clip(scaled_log_policy, clip_min, 0.0))


def epsilon_greedy_policy(q: Array, epsilon: Array, legal: PyTree = ()) -> Array:
    """Return the probabilities ``[A]`` of the epsilon-greedy policy.

    Each of n legal actions has probability epsilon / n; the first action with the maximum Q has
    1 - epsilon in addition. No gradient flows.

    Args:
      q: ``[A]`` float32, ``ILLEGAL`` for illegal actions.
      epsilon: ``[]`` float32
      legal: ``[A]`` bool, or empty if every action is legal.
    """
    chex.assert_rank([q, epsilon], [1, 0])
    possible = some_legal(legal) if is_masked(legal) else jnp.ones(q.shape, jnp.bool_)
    uniform = possible.astype(jnp.float32) / jnp.sum(possible, dtype=jnp.float32)
    greedy = jax.nn.one_hot(jnp.argmax(q), q.size, dtype=jnp.float32)
    return jax.lax.stop_gradient(epsilon * uniform + (1.0 - epsilon) * greedy)


def retrace_target(
    r_t: Array, discount_t: Array, values: Array, taken: Array, traces: Array
) -> Array:
    """Return the Retrace target ``[]`` of the first action of a path of N steps.

    ``G_j = r_j + discount_j (v_j + c_j (G_{j+1} - q_j))`` (Munos et al. 2016, eq. 3 and 4, with
    lambda = 1). With ``q = v``, and ``c = 1`` before the last step, this is the n-step return.
    Where ``c_j`` is 0, the target bootstraps from ``v_j``. No gradient flows.

    Args:
      r_t: ``[N]`` float32, the reward of each step.
      discount_t: ``[N]`` float32, gamma, or 0 where the step terminates.
      values: ``[N]`` float32, v, the value of the observation after each step.
      taken: ``[N]`` float32, q, the value of the action taken there.
      traces: ``[N]`` float32, c, the truncated importance ratio of that action; 0 for the last step
        and for later entries. The other arguments may be arbitrary after the last step.
    """
    chex.assert_rank([r_t, discount_t, values, taken, traces], [1, 1, 1, 1, 1])
    target = jnp.zeros((), jnp.float32)
    for j in range(r_t.shape[0] - 1, -1, -1):
        # Values after a trace of 0 may be arbitrary, even NaN: replace them, do not multiply.
        correction = jnp.where(traces[j] == 0, 0.0, traces[j] * (target - taken[j]))
        target = bootstrapped(r_t[j], discount_t[j], values[j] + correction)
    return jax.lax.stop_gradient(target)


def lambda_targets(
    r_t: Array, discount_t: Array, values: Array, invalid: Array, trace_decay: Array
) -> Array:
    """Return the Q(lambda) targets of consecutive steps of one environment: ``[K]``.

    ``G_t = r_t + discount_t ((1 - lambda) v_{t+1} + lambda G_{t+1})`` with ``v = max_a Q``
    (Peng's Q(lambda); Gallici et al. 2024, eq. 13). The recursion starts with ``G = v`` at
    the last observation. It also restarts with ``G = v`` in each invalid row, which holds the
    final observation of an episode: a truncated episode thus bootstraps from that observation.
    No gradient flows.

    Args:
      r_t: ``[K]`` float32, the reward of each step's action.
      discount_t: ``[K]`` float32, gamma, or 0 where the step terminates.
      values: ``[K + 1]`` float32, the maximum of Q at each step's observation, and at the
        observation after the last step.
      invalid: ``[K]`` bool, True if the row is not a step: its observation ends an episode.
      trace_decay: ``[]`` float32, lambda.
    """
    chex.assert_rank([r_t, discount_t, values, invalid, trace_decay], [1, 1, 1, 1, 0])

    if choices().associative_targets:
        return jax.lax.stop_gradient(
            _associative_targets(r_t, discount_t, values, invalid, trace_decay)
        )

    def backup(next_target: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, discount, value, next_value, is_invalid = step
        mixed = (1.0 - trace_decay) * next_value + trace_decay * next_target
        target = jnp.where(is_invalid, value, bootstrapped(reward, discount, mixed))
        return target, target

    steps = (r_t, discount_t, values[:-1], values[1:], invalid)
    return jax.lax.stop_gradient(jax.lax.scan(backup, values[-1], steps, reverse=True)[1])


def _associative_targets(
    r_t: Array, discount_t: Array, values: Array, invalid: Array, trace_decay: Array
) -> Array:
    """Return ``lambda_targets`` by an associative scan over the maps ``G -> a + b G``."""
    constant = bootstrapped(r_t, discount_t, (1.0 - trace_decay) * values[1:])
    a = jnp.where(invalid, values[:-1], constant)
    b = jnp.where(invalid, 0.0, discount_t * trace_decay)

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return bootstrapped(earlier[0], earlier[1], later[0]), earlier[1] * later[1]

    offset, slope = jax.lax.associative_scan(compose, (a, b), reverse=True)
    return bootstrapped(offset, slope, values[-1])


def rescale(value: Array, epsilon: Array) -> Array:
    """Return ``sign(v) (sqrt(|v| + 1) - 1) + epsilon v`` (Pohlen et al. 2018, prop. A.2).

    The rescaling compresses large values, so that rewards need no clipping. Near zero
    ``sqrt(|v| + 1) - 1`` would cancel; it is computed as ``|v| / (sqrt(|v| + 1) + 1)``.

    Args:
      value: float32, of any shape.
      epsilon: ``[]`` float32, above 0.
    """
    return value / (jnp.sqrt(jnp.abs(value) + 1.0) + 1.0) + epsilon * value


def unscale(value: Array, epsilon: Array) -> Array:
    """Return the inverse of ``rescale``.

    Args:
      value: float32, of any shape.
      epsilon: ``[]`` float32, above 0.
    """
    # u = sqrt(|v| + 1) - 1 is the positive root of epsilon u^2 + (1 + 2 epsilon) u = |value|, and
    # |v| = u (u + 2). The usual formula, with -1 + sqrt(1 + 4 epsilon ...) in the numerator,
    # loses most digits to cancellation.
    linear = 1.0 + 2.0 * epsilon
    root = jnp.sqrt(linear * linear + 4.0 * epsilon * jnp.abs(value))
    shifted = 2.0 * jnp.abs(value) / (linear + root)
    return jnp.sign(value) * shifted * (shifted + 2.0)


def truncated_importance_ratio(prob: Array, behaviour_prob: Array, limit: Array) -> Array:
    """Return ``min(limit, prob / behaviour_prob)`` ``[]``, for an action of another policy.

    Truncation bounds the variance at the price of some bias (Munos et al. 2016, section 3;
    Espeholt et al. 2018, eq. 1). No gradient flows.

    Args:
      prob: ``[]`` float32, probability of the action under the policy being learned.
      behaviour_prob: ``[]`` float32, above 0, its probability under the policy that took it:
        ``ActInfo.behaviour_prob``.
      limit: ``[]`` float32, above 0; 1 in both papers.
    """
    chex.assert_rank([prob, behaviour_prob, limit], [0, 0, 0])
    return jax.lax.stop_gradient(jnp.minimum(limit, prob / behaviour_prob))
