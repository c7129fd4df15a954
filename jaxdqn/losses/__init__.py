"""Losses and targets: functions of one example, vmapped by the caller."""

from jaxdqn.losses.categorical import (
    categorical_clipped,
    categorical_loss,
    categorical_mean,
    categorical_project,
    categorical_target,
)
from jaxdqn.losses.legal import ILLEGAL, is_masked, legal_values, some_legal
from jaxdqn.losses.quantile import (
    quantile_huber_loss,
    quantile_midpoints,
    quantile_soft_target,
    quantile_target,
)
from jaxdqn.losses.registered import Example, q_target, target_metrics
from jaxdqn.losses.targets import (
    bootstrapped,
    double_q_target,
    epsilon_greedy_policy,
    lambda_targets,
    munchausen_bonus,
    q_learning_target,
    rescale,
    retrace_target,
    soft_q_target,
    truncated_importance_ratio,
    unscale,
)
from jaxdqn.losses.td import huber_loss, squared_loss, td_error, weighted_mean

__all__ = [
    "ILLEGAL",
    "Example",
    "bootstrapped",
    "categorical_clipped",
    "categorical_loss",
    "categorical_mean",
    "categorical_project",
    "categorical_target",
    "double_q_target",
    "epsilon_greedy_policy",
    "huber_loss",
    "is_masked",
    "lambda_targets",
    "legal_values",
    "munchausen_bonus",
    "q_learning_target",
    "q_target",
    "quantile_huber_loss",
    "quantile_midpoints",
    "quantile_soft_target",
    "quantile_target",
    "rescale",
    "retrace_target",
    "soft_q_target",
    "some_legal",
    "squared_loss",
    "target_metrics",
    "td_error",
    "truncated_importance_ratio",
    "unscale",
    "weighted_mean",
]
