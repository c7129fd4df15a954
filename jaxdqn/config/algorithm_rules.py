"""Relations between the options of an algorithm. Imports no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxdqn.config.loss_registry import BUILT_IN, LOSSES
from jaxdqn.config.option import Choices, choices_text
from jaxdqn.config.options import COUNT_LIMIT, RULES, Options
from jaxdqn.errors import reject

if TYPE_CHECKING:
    from jaxdqn.config.config import Config


def default_of(name: str) -> Any:
    """Return the default of an option."""
    return getattr(Options, name)  # a dataclass keeps defaults as class attributes


def is_enabled(config: Config, choices: Choices) -> bool:
    """Return whether ``config`` meets the conditions under which an option has an effect.

    A custom loss has the options of its head, and may read ``huber_delta``.
    """
    for name, values in choices.items():
        value = getattr(config, name)
        if name == "loss" and value not in BUILT_IN:
            if LOSSES[value].head not in values and "huber" not in values:
                return False
        elif value not in values:
            return False
    return True


def validate_algorithm(config: Config) -> None:
    """Check the options of the algorithm (DQN with its replay, or PQN), then the shared options.

    Raises:
        ValueError: if an option has an invalid value, or one that conflicts with another option.
    """
    if config.algorithm == "pqn":
        _validate_pqn(config)
    else:
        _validate_replay(config)
        _validate_warmup(config)
        _validate_replay_ratio(config)
    _validate_exploration(config)
    _validate_schedule_rows(config)
    _validate_enabled(config)
    _validate_network(config)
    _validate_observations(config)
    if config.recurrent != "none":
        _validate_recurrent(config)
    if config.bootstrap != "greedy":
        _validate_bootstrap(config)
    if config.importance_ratios:
        _validate_importance_ratios(config)


def _validate_enabled(config: Config) -> None:
    """Check that options without an effect have their defaults."""
    for name, rule in RULES.items():
        value, default = getattr(config, name), default_of(name)
        if value != default and not is_enabled(config, rule.only_with):
            reject(name, value, f"{default} unless {choices_text(rule.only_with)}")


def _validate_exploration(config: Config) -> None:
    if config.epsilon_schedule == "exponential":
        for name in ("epsilon_start", "epsilon_end"):
            if getattr(config, name) == 0:
                reject(name, 0.0, "above 0 with epsilon_schedule='exponential'")
    if config.epsilon_repeat > 0 and config.exploration != "epsilon_greedy":
        reject("epsilon_repeat", config.epsilon_repeat, "0 unless exploration='epsilon_greedy'")


def _validate_schedule_rows(config: Config) -> None:
    """Check that a schedule uses ``schedule_rows``, and that this exceeds the warm-up."""
    if config.schedule_rows is None:
        return
    if not config.has_budget_schedule:
        reject("schedule_rows", config.schedule_rows, "None unless replay='prioritized' or "
               "learning_rate_schedule is linear or cosine")  # fmt: skip
    rows = config.warmup_iterations * config.rows_per_iteration
    if config.schedule_rows <= rows:
        reject("schedule_rows", config.schedule_rows, f"above the {rows} rows of warm-up")


def _validate_replay(config: Config) -> None:
    """Check the capacity of the replay and the size of a batch."""
    capacity, rows_per_add = config.replay_capacity, config.rows_per_iteration
    if capacity % rows_per_add:
        below = capacity // rows_per_add * rows_per_add
        reject("replay_capacity", capacity, f"a multiple of num_envs*rollout_length={rows_per_add},"
               f" such as {below or rows_per_add}")  # fmt: skip
    largest = COUNT_LIMIT // config.envs_per_device - config.rollout_length
    if config.replay_rows > largest:
        reject("replay_capacity", capacity, f"at most {largest * config.num_envs} with "
               f"num_envs={config.num_envs}, so that indices fit in int32")  # fmt: skip
    reach = config.reach + config.frame_stack + config.rollout_length + config.start_stride - 1
    if config.replay_rows <= reach:
        stride = "" if config.recurrent == "none" else "+sequence_stride-1"
        reject("replay_capacity", capacity, f"above num_envs*({_reach_text(config)}+frame_stack+"
               f"rollout_length{stride})={config.num_envs * reach}")  # fmt: skip
    if config.batch_size * config.accumulate > capacity:
        reject("batch_size", config.batch_size, "at most replay_capacity/accumulate="
               f"{capacity // config.accumulate}: more cannot be sampled")  # fmt: skip


def _validate_warmup(config: Config) -> None:
    """Check that a batch can be sampled when learning starts, within the budget."""
    rows = config.warmup_iterations * config.rows_per_iteration
    if config.batch_size * config.accumulate > rows:
        reject("batch_size", config.batch_size, "at most warmup_rows/accumulate="
               f"{rows // config.accumulate}: more cannot be sampled when learning "
               "starts")  # fmt: skip
    if rows <= config.reach * config.num_envs:
        reach = _reach_text(config)
        reach = f"({reach})" if "+" in reach else reach
        reject("warmup_rows", config.warmup_rows, f"above {reach}*num_envs="
               f"{config.reach * config.num_envs}")  # fmt: skip
    if config.total_rows <= rows:
        reject("total_rows", config.total_rows, f"above the {rows} rows of warm-up")


def _reach_text(config: Config) -> str:
    return "n_step" if config.recurrent == "none" else "burn_in+sequence_length+n_step-1"


def _validate_replay_ratio(config: Config) -> None:
    if config.replay_ratio is None:
        return
    steps = config.gradient_steps_for_ratio()
    if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
        unit = config.rows_per_gradient_step / config.rows_per_iteration
        length = "" if config.recurrent == "none" else "*sequence_length"
        reject("replay_ratio", config.replay_ratio, f"a multiple of batch_size*accumulate{length}/"
               f"(num_envs*rollout_length)={unit:g}")  # fmt: skip


def _validate_pqn(config: Config) -> None:
    """Check the options of PQN, which learns from the newest rows without a replay."""
    for name, rule in RULES.items():
        value, default = getattr(config, name), default_of(name)
        if rule.only_with.get("algorithm") == ("dqn",) and value != default:
            reject(name, value, f"{default} with algorithm='pqn', which has no replay and no "
                   "target network")  # fmt: skip
    if LOSSES[config.loss].head != "linear":
        reject("loss", config.loss, "a loss of TD errors, such as 'huber', with algorithm='pqn'")
    if config.noisy:
        reject("noisy", True, "False with algorithm='pqn'")
    rows = config.envs_per_device * config.rollout_length
    if rows % config.minibatches:
        reject("minibatches", config.minibatches, f"a divisor of the {rows} rows that a device "
               "collects in an iteration (num_envs*rollout_length/devices)")  # fmt: skip
    if config.total_rows < config.rows_per_iteration:
        reject("total_rows", config.total_rows, f"at least the {config.rows_per_iteration} rows "
               "of an iteration")  # fmt: skip


def _validate_network(config: Config) -> None:
    if config.layer_norm and config.network == "mlp" and not config.hidden_sizes:
        reject("layer_norm", True, "False with network='mlp' and no hidden_sizes: there is no "
               "activation")  # fmt: skip
    if config.value_max <= config.value_min:
        reject("value_max", config.value_max, f"above value_min={config.value_min}")


def _validate_observations(config: Config) -> None:
    if config.normalize_observations and config.scale_observations == "always":
        reject("scale_observations", "always", "auto or never with normalize_observations=True, "
               "which scales them")  # fmt: skip


def _validate_bootstrap(config: Config) -> None:
    """Check the options of the soft and Munchausen targets."""
    if config.double:
        reject("double", True, f"False with bootstrap={config.bootstrap!r}, which chooses no "
               "action")  # fmt: skip
    # With n_step > 1 the Munchausen bonus is that of the first action only, as in BTR (Clark et
    # al. 2024).
    if config.n_step > 1 and config.bootstrap == "soft":
        reject("n_step", config.n_step, "1 with bootstrap='soft': an n-step return lacks the "
               "entropy of the steps in between")  # fmt: skip
    if LOSSES[config.loss].head == "categorical":
        reject("loss", config.loss, f"one without fixed atoms, such as 'quantile', with "
               f"bootstrap={config.bootstrap!r}")  # fmt: skip


def _validate_importance_ratios(config: Config) -> None:
    """Check that there is something to correct: n-step returns of action values."""
    if config.recurrent != "none":
        reject("importance_ratios", True, f"False with recurrent={config.recurrent!r}")
    if config.bootstrap != "greedy":
        reject("importance_ratios", True, f"False with bootstrap={config.bootstrap!r}, whose "
               "policy is a softmax")  # fmt: skip
    if config.n_step == 1:
        reject("importance_ratios", True, "False with n_step=1: one-step targets need no "
               "correction")  # fmt: skip
    if LOSSES[config.loss].head != "linear":
        reject("importance_ratios", True, f"False with loss={config.loss!r}: only returns of "
               "action values are corrected")  # fmt: skip
    if config.replay_from is not None:
        reject("importance_ratios", True, "False with replay_from, whose rows lack the "
               "probabilities of their actions")  # fmt: skip


def _validate_recurrent(config: Config) -> None:
    """Check the options that learning from sequences restricts."""
    required = {
        "algorithm": "dqn",
        "bootstrap": "greedy",
        "frame_stack": 1,
        "noisy": False,
        "replay_from": None,
    }
    for name, value in required.items():
        if getattr(config, name) != value:
            reject(name, getattr(config, name), f"{value} with recurrent={config.recurrent!r}")
    head = LOSSES[config.loss].head
    if head == "implicit_quantile":
        reject("loss", config.loss, "one without sampled quantiles, such as 'quantile', with "
               f"recurrent={config.recurrent!r}")  # fmt: skip
    if config.rescale_values and head != "linear":
        reject("rescale_values", True, f"False with loss={config.loss!r}: only values of a linear "
               "head can be rescaled")  # fmt: skip
