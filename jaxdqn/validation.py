"""What a configuration must be: every field and every relation between fields. Imports no JAX."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from jaxdqn.registry import LOSSES

if TYPE_CHECKING:
    from jaxdqn.config import Config

_AT_LEAST_ONE = (
    "total_steps", "num_envs", "rollout_length", "gradient_steps", "batch_size", "accumulate",
    "n_step", "target_period", "epsilon_decay_steps", "replay_capacity", "warmup_steps",
    "frame_stack", "eval_episodes", "log_every", "keep", "rollback_limit", "devices",
    "model_devices", "average_every", "num_seeds", "quantiles",
    "minibatches", "epochs", "recurrent_size", "sequence_length",
)  # fmt: skip
_POSITIVE = (
    "huber_delta", "learning_rate", "adam_epsilon", "temperature", "clip_value", "clip_norm",
    "replay_ratio", "max_seconds", "rollback_factor", "top_k_fraction",
    "entropy_temperature", "munchausen_scale", "noisy_sigma",
)  # fmt: skip
SWEEPABLE = (
    "learning_rate", "gamma", "epsilon_start", "epsilon_end", "temperature", "huber_delta",
    "clip_value", "clip_norm", "target_tau", "priority_exponent", "importance_exponent",
    "entropy_temperature", "munchausen_scale", "munchausen_clip",
    "trace_decay",
)  # fmt: skip
"""Fields that are traced scalars of the step (``jaxdqn.types.Hyper``)."""
_PROBABILITIES = (
    "epsilon_start", "epsilon_end", "epsilon_repeat", "gamma", "priority_exponent",
    "importance_exponent", "trace_decay",
)  # fmt: skip
_COUNT_LIMIT = 2**30
_OUR_LOSSES = tuple(LOSSES)
_CATEGORICAL = ("categorical",)
_DISTRIBUTIONAL = ("quantile", "implicit_quantile")
_CELLS = ("lstm", "gru")
_SOFT = ("soft", "munchausen")
_IN_USE: dict[str, tuple[str, tuple[Any, ...]]] = {
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
OF_REPLICAS = ("mapping", "average_every", "average_moments", "compression", "top_k_fraction")
"""Fields that say how replicas learn together; one alone has their defaults."""
OF_MANY = ("sweep", "num_seeds", "population", "devices", "model_devices", *OF_REPLICAS)
"""Fields whose defaults make of a configuration that of one learner on one device."""
_OF_REPLAY = (
    "gradient_steps", "replay_ratio", "batch_size", "accumulate", "n_step", "double", "bootstrap",
    "target_period", "target_tau", "replay", "replay_capacity", "warmup_steps", "replay_from",
    "replay_in_checkpoint",
)  # fmt: skip
"""Fields that say how rows are kept and drawn, and targets made of them."""
_LEARNER_LIMIT = 2**14
_NUMBER_LIMIT = 1e30  # well inside float32, in which they are computed


def _refuse(name: str, value: Any, constraint: str) -> None:
    raise ValueError(f"{name}={value!r}: must be {constraint}")


def validate(config: Config) -> None:
    """Check every field and every relation between fields.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    _validate_types(config)
    _validate_ranges(config)
    _validate_relations(config)


def _validate_types(config: Config) -> None:
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if value is None and type(None) in get_args(kind):
            continue
        if name == "loss":
            if not isinstance(value, str) or value not in LOSSES:
                _refuse(name, value, f"one of {', '.join(LOSSES)}")
        elif get_origin(kind) is Literal:
            if value not in get_args(kind):
                _refuse(name, value, f"one of {', '.join(get_args(kind))}")
        elif kind in (int, int | None):
            if not isinstance(value, int) or isinstance(value, bool):
                _refuse(name, value, "a whole number")
        elif kind is bool and not isinstance(value, bool):
            _refuse(name, value, "True or False")
        elif kind in (str, str | None) and not isinstance(value, str):
            _refuse(name, value, "a string")
        elif kind is float or float in get_args(kind):
            if isinstance(value, bool) or not isinstance(value, int | float):
                _refuse(name, value, "a number")
            if value != value or abs(value) == math.inf:
                _refuse(name, value, "finite")
            if abs(value) >= _NUMBER_LIMIT:
                _refuse(name, value, f"finite in float32: below {_NUMBER_LIMIT:g} in size")
    if not isinstance(config.sweep, tuple) or not all(type(text) is str for text in config.sweep):
        _refuse("sweep", config.sweep, "a tuple of strings NAME=VALUE,VALUE,...")
    if not isinstance(config.hidden_sizes, tuple) or not all(
        type(width) is int and width >= 1 for width in config.hidden_sizes
    ):
        _refuse("hidden_sizes", config.hidden_sizes, "a tuple of whole numbers of at least 1")


def _validate_ranges(config: Config) -> None:
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if value is not None and value < 1:
            _refuse(name, value, "at least 1")
    for name in ("target_period", "log_every", "eval_every", "gradient_steps"):
        if getattr(config, name) >= _COUNT_LIMIT:
            _refuse(name, getattr(config, name), f"below {_COUNT_LIMIT}")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and value <= 0:
            _refuse(name, value, "greater than 0")
    for name in _PROBABILITIES:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            _refuse(name, value, "between 0 and 1")
    if config.target_tau is not None and not 0 < config.target_tau <= 1:
        _refuse("target_tau", config.target_tau, "above 0 and at most 1")
    if config.epsilon_ladder is not None and config.epsilon_ladder < 0:
        _refuse("epsilon_ladder", config.epsilon_ladder, "at least 0")
    if not 0 <= config.seed < 2**32:
        _refuse("seed", config.seed, "from 0 to 2**32 - 1")
    if config.eval_every < 0:
        _refuse("eval_every", config.eval_every, "at least 0")
    if config.checkpoint_every is not None and config.checkpoint_every < 0:
        _refuse("checkpoint_every", config.checkpoint_every, "at least 0")
    if config.rollback_factor >= 1:
        _refuse("rollback_factor", config.rollback_factor, "below 1")
    if config.top_k_fraction > 1:
        _refuse("top_k_fraction", config.top_k_fraction, "at most 1")


def _validate_relations(config: Config) -> None:
    _validate_sweep(config)
    _validate_mapping(config)
    for name in ("num_envs", "batch_size") if config.algorithm == "dqn" else ("num_envs",):
        if getattr(config, name) % config.replicas:
            shared = "devices" if config.model_devices == 1 else "devices/model_devices"
            _refuse(name, getattr(config, name), f"a multiple of {shared}={config.replicas}")
    if config.algorithm == "pqn":
        _validate_pqn(config)
    else:
        _validate_replay(config)
    if config.epsilon_schedule == "exponential":
        for name in ("epsilon_start", "epsilon_end"):
            if getattr(config, name) == 0:
                _refuse(name, 0.0, "above 0 with epsilon_schedule='exponential'")
    if config.epsilon_repeat > 0 and config.exploration != "epsilon_greedy":
        _refuse("epsilon_repeat", config.epsilon_repeat, "0 unless exploration='epsilon_greedy'")
    for name, (choice, users) in _IN_USE.items():
        if name in _ALWAYS_TAKEN or getattr(config, name) == _default(config, name):
            continue
        if not _uses(config, choice, users):
            wanted = " or ".join(f"{choice}={user!r}" for user in users)
            _refuse(name, getattr(config, name), f"{_default(config, name)} unless {wanted}")
    _validate_family(config)
    if config.guard == "rollback" and config.checkpoint_every == 0:
        _refuse("checkpoint_every", 0, "above 0 with guard='rollback'")
    if config.stop_when_solved and config.solve_return is None:
        _refuse("stop_when_solved", True, "left False unless solve_return is given")


def _validate_replay(config: Config) -> None:
    per_add = config.rows_per_iteration
    if config.replay_capacity % per_add:
        below = config.replay_capacity // per_add * per_add
        _refuse(
            "replay_capacity",
            config.replay_capacity,
            f"a multiple of num_envs*rollout_length={per_add}, such as {below or per_add}",
        )
    reach = config.reach + config.frame_stack + config.rollout_length
    if config.replay_rows <= reach:
        names = "n_step" if config.recurrent == "none" else "burn_in+sequence_length+n_step-1"
        _refuse(
            "replay_capacity",
            config.replay_capacity,
            f"above num_envs*({names}+frame_stack+rollout_length)={config.num_envs * reach}",
        )
    if config.replay_capacity >= _COUNT_LIMIT:
        _refuse("replay_capacity", config.replay_capacity, f"below {_COUNT_LIMIT}")
    drawn = config.batch_size * config.accumulate
    if drawn > config.replay_capacity:
        _refuse(
            "batch_size",
            config.batch_size,
            f"at most replay_capacity={config.replay_capacity} with accumulate="
            f"{config.accumulate}: more than can be sampled",
        )
    warmup_rows = config.warmup_iterations * per_add
    if drawn > warmup_rows:
        _refuse(
            "batch_size",
            config.batch_size,
            f"at most warmup_steps={config.warmup_steps} with accumulate={config.accumulate}: "
            "more than can be sampled when learning starts",
        )
    if warmup_rows <= config.reach * config.num_envs:
        names = "n_step" if config.recurrent == "none" else "(burn_in+sequence_length+n_step-1)"
        _refuse(
            "warmup_steps",
            config.warmup_steps,
            f"above {names}*num_envs={config.reach * config.num_envs}",
        )
    if config.total_steps <= warmup_rows:
        _refuse("total_steps", config.total_steps, f"above the {warmup_rows} rows of warm-up")
    if config.replay_ratio is not None:
        steps = config.gradient_steps_for_ratio()
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
            unit = config.rows_per_gradient_step / per_add
            rows = "batch_size*accumulate"
            rows += "" if config.recurrent == "none" else "*sequence_length"
            _refuse(
                "replay_ratio",
                config.replay_ratio,
                f"a multiple of {rows}/(num_envs*rollout_length)={unit:g}",
            )


def _validate_pqn(config: Config) -> None:
    """Check what learns from the rows just acted."""
    for name in _OF_REPLAY:
        if getattr(config, name) != _default(config, name):
            _refuse(name, getattr(config, name), f"{_default(config, name)} with algorithm='pqn', "
                    "which has no replay and no target network")  # fmt: skip
    if LOSSES[config.loss].head != "linear":
        _refuse("loss", config.loss, "of a TD error (huber, squared) with algorithm='pqn'")
    if config.noisy:
        _refuse("noisy", True, "False with algorithm='pqn'")
    rows = config.envs_per_device * config.rollout_length
    if rows % config.minibatches:
        _refuse("minibatches", config.minibatches, f"a divisor of the {rows} rows that a device "
                "acts in an iteration (num_envs*rollout_length/devices)")  # fmt: skip
    if config.total_steps < config.rows_per_iteration:
        _refuse("total_steps", config.total_steps, f"at least the {config.rows_per_iteration} rows "
                "of an iteration")  # fmt: skip


def _uses(config: Config, choice: str, users: tuple[Any, ...]) -> bool:
    value = getattr(config, choice)
    if choice != "loss" or value in _OUR_LOSSES:
        return value in users
    # A loss that is not ours has the options of its head, and may read any hyper-parameter.
    return LOSSES[value].head in users or "huber" in users


def _validate_family(config: Config) -> None:
    """Check what loss, bootstrap and network are together."""
    if config.layer_norm and config.network == "mlp" and not config.hidden_sizes:
        _refuse("layer_norm", True, "False with network='mlp' and no hidden_sizes: there is no "
                "activation")  # fmt: skip
    if config.munchausen_clip > 0:
        _refuse("munchausen_clip", config.munchausen_clip, "at most 0")
    if config.atoms < 2:
        _refuse("atoms", config.atoms, "at least 2")
    if config.value_max <= config.value_min:
        _refuse("value_max", config.value_max, f"above value_min={config.value_min}")
    if config.burn_in < 0:
        _refuse("burn_in", config.burn_in, "at least 0")
    if config.recurrent != "none":
        _validate_recurrent(config)
    if config.bootstrap == "greedy":
        return
    if config.double:
        _refuse("double", True, f"False with bootstrap={config.bootstrap!r}, which chooses no "
                "action")  # fmt: skip
    if config.n_step > 1:
        _refuse("n_step", config.n_step, f"1 with bootstrap={config.bootstrap!r}, whose entropy "
                "and bonus belong to every step")  # fmt: skip
    if LOSSES[config.loss].head == "categorical":
        _refuse("loss", config.loss, f"another with bootstrap={config.bootstrap!r}, such as "
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
            _refuse(name, getattr(config, name), f"{value} with recurrent={config.recurrent!r}")
    head = LOSSES[config.loss].head
    if head == "implicit_quantile":
        _refuse("loss", config.loss, f"another with recurrent={config.recurrent!r}")
    if config.rescale_values and head != "linear":
        _refuse("rescale_values", True, f"False with loss={config.loss!r}: only single values are "
                "rescaled")  # fmt: skip


def _validate_sweep(config: Config) -> None:
    names = []
    for text in config.sweep:
        try:
            name, values = read_sweep(text)
        except ValueError:
            _refuse("sweep", text, "NAME=VALUE,VALUE,... with numbers, as in gamma=0.99,0.997")
        if name not in SWEEPABLE:
            known = [field.name for field in dataclasses.fields(config)]
            if name in known:
                _refuse("sweep", text, f"of a traced scalar: {', '.join(SWEEPABLE)}; others change "
                        "shapes or the program, and take a run each")  # fmt: skip
            _refuse("sweep", text, f"of a field; nearest: {suggest(name, list(SWEEPABLE))}")
        if name in names:
            _refuse("sweep", text, f"the only one of {name}")
        if getattr(config, name) is None:
            _refuse("sweep", text, f"of an option in use: give {name} a value too")
        choice, users = _IN_USE.get(name, (name, ()))
        if users and not _uses(config, choice, users):
            wanted = " or ".join(f"{choice}={user!r}" for user in users)
            _refuse("sweep", text, f"of an option in use: {name} takes {wanted}")
        names.append(name)
        for value in values:
            try:
                # Each value alone must be one that the field takes.
                fields = {**{other: _default(config, other) for other in OF_MANY}, name: value}
                dataclasses.replace(config, **fields)
            except ValueError as error:
                raise ValueError(f"sweep={text!r}: {error}") from None
        if len(set(values)) < len(values):
            _refuse("sweep", text, "of values that differ")
    if config.seed + config.num_seeds > 2**32:
        _refuse("num_seeds", config.num_seeds, "so that seed + num_seeds is at most 2**32")
    if config.learners > _LEARNER_LIMIT:
        _refuse(
            "num_seeds", config.num_seeds, f"so that there are at most {_LEARNER_LIMIT} learners"
        )


def _validate_mapping(config: Config) -> None:
    devices, learners = config.devices, config.learners
    if devices % config.model_devices:
        _refuse("model_devices", config.model_devices, f"a divisor of devices={devices}")
    if config.model_devices > 1 and config.compression != "none":
        _refuse("compression", config.compression, "none with model_devices above 1: to make one "
                "vector of the gradient would gather what is split")  # fmt: skip
    if config.model_devices > 1 and config.mapping == "pmap":
        _refuse("mapping", "pmap", "shard_map with model_devices above 1")
    if learners > 1:
        if learners % devices:
            _refuse("devices", devices, f"a divisor of the {learners} learners")
        if config.model_devices > 1:
            _refuse("model_devices", config.model_devices, "1 with several learners")
        if config.guard == "rollback":
            _refuse("guard", "rollback", "off, skip or stop with several learners")
        if config.replay_from is not None:
            _refuse("replay_from", config.replay_from, "left out with several learners")
    elif config.population != "auto":
        _refuse("population", config.population, "auto with one learner (num_seeds=1, no sweep)")
    if config.replicas == 1:
        for name in ("mapping", "average_every", "compression"):
            default = _default(config, name)
            if getattr(config, name) != default:
                _refuse(name, getattr(config, name), f"{default} unless replicas learn together, "
                        "with one learner and devices above 1")  # fmt: skip
    if config.average_every is None:
        if config.average_moments:
            _refuse("average_moments", True, "left False unless average_every is given")
        return
    steps, every = config.gradient_steps_per_iteration, config.average_every
    if every % steps and steps % every:
        _refuse("average_every", every, f"a multiple or a divisor of the {steps} gradient steps "
                "of an iteration")  # fmt: skip
    if config.compression != "none":
        _refuse("compression", config.compression, "none with average_every, which sends no "
                "gradients")  # fmt: skip
    if config.has_periodic_target and config.target_period % every:
        _refuse("target_period", config.target_period, f"a multiple of average_every={every}, so "
                "that the target is of averaged parameters")  # fmt: skip


def _default(config: Config, name: str) -> Any:
    return getattr(type(config), name)  # a dataclass keeps it so


def read_sweep(text: str) -> tuple[str, tuple[float, ...]]:
    """Return the name and the values in ``NAME=VALUE,VALUE,...``."""
    name, _, values = text.partition("=")
    return name.strip().lstrip("-").replace("-", "_"), tuple(map(float, values.split(",")))


def suggest(name: str, known: list[str]) -> str:
    """Return the known names nearest to ``name``, or all of them, as text."""
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known)
