"""Losses: per-example functions, vmapped by the caller."""

from jaxdqn.losses.categorical import (
    categorical_loss,
    categorical_mean,
    categorical_project,
    categorical_target,
)
from jaxdqn.losses.quantile import quantile_huber_loss, quantile_midpoints, quantile_target
from jaxdqn.losses.targets import (
    double_q_target,
    munchausen_bonus,
    q_learning_target,
    soft_q_target,
)
from jaxdqn.losses.td import huber_loss, squared_loss, td_error, weighted_mean

__all__ = [
    "categorical_loss",
    "categorical_mean",
    "categorical_project",
    "categorical_target",
    "double_q_target",
    "huber_loss",
    "munchausen_bonus",
    "q_learning_target",
    "quantile_huber_loss",
    "quantile_midpoints",
    "quantile_target",
    "soft_q_target",
    "squared_loss",
    "td_error",
    "weighted_mean",
]
