"""What the options of an algorithm must be together. Imports no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.errors import refuse

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

COUNT_LIMIT = 2**30
_OUR_LOSSES = tuple(LOSSES)
_CATEGORICAL = ("categorical",)
_DISTRIBUTIONAL = ("quantile", "implicit_quantile")
_CELLS = ("lstm", "gru")
_SOFT = ("soft", "munchausen")
IN_USE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "huber_delta": ("loss", ("huber", *_DISTRIBUTIONAL)),
    "temperature": ("exploration", ("boltzmann",)),
    "epsilon_start": ("epsilon_schedule", ("linear", "exponential")),
    "priority_exponent": ("replay", ("prioritized",)),
    "importance_exponent": ("replay", ("prioritized",)),
    "entropy_temperature": ("bootstrap", _SOFT),
    "munchausen_scale": ("bootstrap", ("munchausen",)),
    "munchausen_clip": ("bootstrap", ("munchausen",)),
    "noisy_sigma": ("noisy", (True,)),
    "atoms": ("loss", _CATEGORICAL),
    "value_min": ("loss", _CATEGORICAL),
    "value_max": ("loss", _CATEGORICAL),
    "quantiles": ("loss", _DISTRIBUTIONAL),
    "top_k_fraction": ("compression", ("top_k",)),
    "minibatches": ("algorithm", ("pqn",)),
    "epochs": ("algorithm", ("pqn",)),
    "trace_decay": ("algorithm", ("pqn",)),
    "recurrent_size": ("recurrent", _CELLS),
    "sequence_length": ("recurrent", _CELLS),
    "burn_in": ("recurrent", _CELLS),
    "rescale_values": ("recurrent", _CELLS),
}
"""Of an option: the choice that uses it, and which of its values do. A sweep over it, or, but for
the first three, any value that is not its default, is refused without them."""
_ALWAYS_TAKEN = ("huber_delta", "temperature", "epsilon_start")
_OF_REPLAY = (
    "gradient_steps", "replay_ratio", "batch_size", "accumulate", "n_step", "double", "bootstrap",
    "target_period", "target_tau", "replay", "replay_capacity", "warmup_rows", "replay_from",
    "replay_in_checkpoint",
)  # fmt: skip
"""Fields that say how rows are kept and drawn, and targets made of them."""


def default_of(config: Config, name: str) -> Any:
    """Return the default of a field."""
    return getattr(type(config), name)  # a dataclass keeps it so


def uses(config: Config, choice: str, users: tuple[Any, ...]) -> bool:
    """Say whether ``config`` chooses one of ``users``, which use an option."""
    value = getattr(config, choice)
    if choice != "loss" or value in _OUR_LOSSES:
        return value in users
    # A loss that is not ours has the options of its head, and may read any hyper-parameter.
    return LOSSES[value].head in users or "huber" in users


def validate_algorithm(config: Config) -> None:
    """Check replay or PQN, exploration, and what the family's options are together.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    if config.algorithm == "pqn":
        _validate_pqn(config)
    else:
        _validate_replay(config)
    if config.epsilon_schedule == "exponential":
        for name in ("epsilon_start", "epsilon_end"):
            if getattr(config, name) == 0:
                refuse(name, 0.0, "above 0 with epsilon_schedule='exponential'")
    if config.epsilon_repeat > 0 and config.exploration != "epsilon_greedy":
        refuse("epsilon_repeat", config.epsilon_repeat, "0 unless exploration='epsilon_greedy'")
    for name, (choice, users) in IN_USE.items():
        if name in _ALWAYS_TAKEN or getattr(config, name) == default_of(config, name):
            continue
        if not uses(config, choice, users):
            wanted = " or ".join(f"{choice}={user!r}" for user in users)
            refuse(name, getattr(config, name), f"{default_of(config, name)} unless {wanted}")
    _validate_family(config)


def _validate_replay(config: Config) -> None:
    per_add = config.rows_per_iteration
    if config.replay_capacity % per_add:
        below = config.replay_capacity // per_add * per_add
        refuse(
            "replay_capacity",
            config.replay_capacity,
            f"a multiple of num_envs*rollout_length={per_add}, such as {below or per_add}",
        )
    reach = config.reach + config.frame_stack + config.rollout_length
    if config.replay_rows <= reach:
        names = "n_step" if config.recurrent == "none" else "burn_in+sequence_length+n_step-1"
        refuse(
            "replay_capacity",
            config.replay_capacity,
            f"above num_envs*({names}+frame_stack+rollout_length)={config.num_envs * reach}",
        )
    if config.replay_capacity >= COUNT_LIMIT:
        refuse("replay_capacity", config.replay_capacity, f"below {COUNT_LIMIT}")
    drawn = config.batch_size * config.accumulate
    if drawn > config.replay_capacity:
        refuse(
            "batch_size",
            config.batch_size,
            f"at most replay_capacity={config.replay_capacity} with accumulate="
            f"{config.accumulate}: more than can be sampled",
        )
    warmup_rows = config.warmup_iterations * per_add
    if drawn > warmup_rows:
        refuse(
            "batch_size",
            config.batch_size,
            f"at most warmup_rows={config.warmup_rows} with accumulate={config.accumulate}: "
            "more than can be sampled when learning starts",
        )
    if warmup_rows <= config.reach * config.num_envs:
        names = "n_step" if config.recurrent == "none" else "(burn_in+sequence_length+n_step-1)"
        refuse(
            "warmup_rows",
            config.warmup_rows,
            f"above {names}*num_envs={config.reach * config.num_envs}",
        )
    if config.total_rows <= warmup_rows:
        refuse("total_rows", config.total_rows, f"above the {warmup_rows} rows of warm-up")
    if config.replay_ratio is not None:
        steps = config.gradient_steps_for_ratio()
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
            unit = config.rows_per_gradient_step / per_add
            rows = "batch_size*accumulate"
            rows += "" if config.recurrent == "none" else "*sequence_length"
            refuse(
                "replay_ratio",
                config.replay_ratio,
                f"a multiple of {rows}/(num_envs*rollout_length)={unit:g}",
            )


def _validate_pqn(config: Config) -> None:
    """Check what learns from the rows just acted."""
    for name in _OF_REPLAY:
        if getattr(config, name) != default_of(config, name):
            refuse(name, getattr(config, name), f"{default_of(config, name)} with algorithm='pqn', "
                    "which has no replay and no target network")  # fmt: skip
    if LOSSES[config.loss].head != "linear":
        refuse("loss", config.loss, "of a TD error (huber, squared) with algorithm='pqn'")
    if config.noisy:
        refuse("noisy", True, "False with algorithm='pqn'")
    rows = config.envs_per_device * config.rollout_length
    if rows % config.minibatches:
        refuse("minibatches", config.minibatches, f"a divisor of the {rows} rows that a device "
                "acts in an iteration (num_envs*rollout_length/devices)")  # fmt: skip
    if config.total_rows < config.rows_per_iteration:
        refuse("total_rows", config.total_rows, f"at least the {config.rows_per_iteration} rows "
                "of an iteration")  # fmt: skip


def _validate_family(config: Config) -> None:
    """Check what loss, bootstrap and network are together."""
    if config.layer_norm and config.network == "mlp" and not config.hidden_sizes:
        refuse("layer_norm", True, "False with network='mlp' and no hidden_sizes: there is no "
                "activation")  # fmt: skip
    if config.munchausen_clip > 0:
        refuse("munchausen_clip", config.munchausen_clip, "at most 0")
    if config.atoms < 2:
        refuse("atoms", config.atoms, "at least 2")
    if config.value_max <= config.value_min:
        refuse("value_max", config.value_max, f"above value_min={config.value_min}")
    if config.burn_in < 0:
        refuse("burn_in", config.burn_in, "at least 0")
    if config.recurrent != "none":
        _validate_recurrent(config)
    if config.bootstrap == "greedy":
        return
    if config.double:
        refuse("double", True, f"False with bootstrap={config.bootstrap!r}, which chooses no "
                "action")  # fmt: skip
    if config.n_step > 1:
        refuse("n_step", config.n_step, f"1 with bootstrap={config.bootstrap!r}, whose entropy "
                "and bonus belong to every step")  # fmt: skip
    if LOSSES[config.loss].head == "categorical":
        refuse("loss", config.loss, f"another with bootstrap={config.bootstrap!r}, such as "
                "'quantile'")  # fmt: skip


def _validate_recurrent(config: Config) -> None:
    """Check what is learned from sequences."""
    wanted = {
        "algorithm": "dqn",
        "replay": "uniform",
        "bootstrap": "greedy",
        "frame_stack": 1,
        "noisy": False,
        "replay_from": None,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            refuse(name, getattr(config, name), f"{value} with recurrent={config.recurrent!r}")
    head = LOSSES[config.loss].head
    if head == "implicit_quantile":
        refuse("loss", config.loss, f"another with recurrent={config.recurrent!r}")
    if config.rescale_values and head != "linear":
        refuse("rescale_values", True, f"False with loss={config.loss!r}: only single values are "
                "rescaled")  # fmt: skip
