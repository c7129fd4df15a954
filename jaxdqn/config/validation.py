"""What a configuration must be: fields, sweeps, mappings. Imports no JAX."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from jaxdqn.config.algorithm_rules import COUNT_LIMIT, IN_USE, default_of, uses, validate_algorithm
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.config.options import OF_MANY, SWEEPABLE, read_sweep
from jaxdqn.errors import refuse, suggest

if TYPE_CHECKING:
    from jaxdqn.config.config import Config

_AT_LEAST_ONE = (
    "total_rows", "num_envs", "rollout_length", "gradient_steps", "batch_size", "accumulate",
    "n_step", "target_period", "epsilon_decay_rows", "replay_capacity", "warmup_rows",
    "frame_stack", "eval_episodes", "log_every", "keep", "rollback_limit", "devices",
    "model_devices", "average_every", "num_seeds", "quantiles",
    "minibatches", "epochs", "recurrent_size", "sequence_length",
)  # fmt: skip
_POSITIVE = (
    "huber_delta", "learning_rate", "adam_epsilon", "temperature", "clip_value", "clip_norm",
    "replay_ratio", "max_seconds", "rollback_factor", "top_k_fraction",
    "entropy_temperature", "munchausen_scale", "noisy_sigma",
)  # fmt: skip
_PROBABILITIES = (
    "epsilon_start", "epsilon_end", "epsilon_repeat", "gamma", "priority_exponent",
    "importance_exponent", "trace_decay",
)  # fmt: skip
_LEARNER_LIMIT = 2**14
_NUMBER_LIMIT = 1e30  # well inside float32, in which they are computed


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
                refuse(name, value, f"one of {', '.join(LOSSES)}")
        elif get_origin(kind) is Literal:
            if value not in get_args(kind):
                refuse(name, value, f"one of {', '.join(get_args(kind))}")
        elif kind in (int, int | None):
            if not isinstance(value, int) or isinstance(value, bool):
                refuse(name, value, "a whole number")
        elif kind is bool and not isinstance(value, bool):
            refuse(name, value, "True or False")
        elif kind in (str, str | None) and not isinstance(value, str):
            refuse(name, value, "a string")
        elif kind is float or float in get_args(kind):
            if isinstance(value, bool) or not isinstance(value, int | float):
                refuse(name, value, "a number")
            if value != value or abs(value) == math.inf:
                refuse(name, value, "finite")
            if abs(value) >= _NUMBER_LIMIT:
                refuse(name, value, f"finite in float32: below {_NUMBER_LIMIT:g} in size")
    if not isinstance(config.sweep, tuple) or not all(type(text) is str for text in config.sweep):
        refuse("sweep", config.sweep, "a tuple of strings NAME=VALUE,VALUE,...")
    if not isinstance(config.hidden_sizes, tuple) or not all(
        type(width) is int and width >= 1 for width in config.hidden_sizes
    ):
        refuse("hidden_sizes", config.hidden_sizes, "a tuple of whole numbers of at least 1")


def _validate_ranges(config: Config) -> None:
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if value is not None and value < 1:
            refuse(name, value, "at least 1")
    for name in ("target_period", "log_every", "eval_every", "gradient_steps"):
        if getattr(config, name) >= COUNT_LIMIT:
            refuse(name, getattr(config, name), f"below {COUNT_LIMIT}")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and value <= 0:
            refuse(name, value, "greater than 0")
    for name in _PROBABILITIES:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            refuse(name, value, "between 0 and 1")
    if config.target_tau is not None and not 0 < config.target_tau <= 1:
        refuse("target_tau", config.target_tau, "above 0 and at most 1")
    if config.epsilon_ladder is not None and config.epsilon_ladder < 0:
        refuse("epsilon_ladder", config.epsilon_ladder, "at least 0")
    if not 0 <= config.seed < 2**32:
        refuse("seed", config.seed, "from 0 to 2**32 - 1")
    if config.eval_every < 0:
        refuse("eval_every", config.eval_every, "at least 0")
    if config.checkpoint_every is not None and config.checkpoint_every < 0:
        refuse("checkpoint_every", config.checkpoint_every, "at least 0")
    if config.rollback_factor >= 1:
        refuse("rollback_factor", config.rollback_factor, "below 1")
    if config.top_k_fraction > 1:
        refuse("top_k_fraction", config.top_k_fraction, "at most 1")


def _validate_relations(config: Config) -> None:
    _validate_sweep(config)
    _validate_mapping(config)
    for name in ("num_envs", "batch_size") if config.algorithm == "dqn" else ("num_envs",):
        if getattr(config, name) % config.replicas:
            shared = "devices" if config.model_devices == 1 else "devices/model_devices"
            refuse(name, getattr(config, name), f"a multiple of {shared}={config.replicas}")
    validate_algorithm(config)
    if config.guard == "rollback" and config.checkpoint_every == 0:
        refuse("checkpoint_every", 0, "above 0 with guard='rollback'")
    if config.stop_when_solved and config.solve_return is None:
        refuse("stop_when_solved", True, "left False unless solve_return is given")


def _validate_sweep(config: Config) -> None:
    names = []
    for text in config.sweep:
        try:
            name, values = read_sweep(text)
        except ValueError:
            refuse("sweep", text, "NAME=VALUE,VALUE,... with numbers, as in gamma=0.99,0.997")
        if name not in SWEEPABLE:
            known = [field.name for field in dataclasses.fields(config)]
            if name in known:
                refuse("sweep", text, f"of a traced scalar: {', '.join(SWEEPABLE)}; others change "
                        "shapes or the program, and take a run each")  # fmt: skip
            refuse("sweep", text, f"of a field; nearest: {suggest(name, list(SWEEPABLE))}")
        if name in names:
            refuse("sweep", text, f"the only one of {name}")
        if getattr(config, name) is None:
            refuse("sweep", text, f"of an option in use: give {name} a value too")
        choice, users = IN_USE.get(name, (name, ()))
        if users and not uses(config, choice, users):
            wanted = " or ".join(f"{choice}={user!r}" for user in users)
            refuse("sweep", text, f"of an option in use: {name} takes {wanted}")
        names.append(name)
        for value in values:
            try:
                # Each value alone must be one that the field takes.
                fields = {**{other: default_of(config, other) for other in OF_MANY}, name: value}
                dataclasses.replace(config, **fields)
            except ValueError as error:
                raise ValueError(f"sweep={text!r}: {error}") from None
        if len(set(values)) < len(values):
            refuse("sweep", text, "of values that differ")
    if config.seed + config.num_seeds > 2**32:
        refuse("num_seeds", config.num_seeds, "so that seed + num_seeds is at most 2**32")
    if config.learners > _LEARNER_LIMIT:
        refuse(
            "num_seeds", config.num_seeds, f"so that there are at most {_LEARNER_LIMIT} learners"
        )


def _validate_mapping(config: Config) -> None:
    devices, learners = config.devices, config.learners
    if devices % config.model_devices:
        refuse("model_devices", config.model_devices, f"a divisor of devices={devices}")
    if config.model_devices > 1 and config.compression != "none":
        refuse("compression", config.compression, "none with model_devices above 1: to make one "
                "vector of the gradient would gather what is split")  # fmt: skip
    if config.model_devices > 1 and config.mapping == "pmap":
        refuse("mapping", "pmap", "shard_map with model_devices above 1")
    if learners > 1:
        if learners % devices:
            refuse("devices", devices, f"a divisor of the {learners} learners")
        if config.model_devices > 1:
            refuse("model_devices", config.model_devices, "1 with several learners")
        if config.guard == "rollback":
            refuse("guard", "rollback", "off, skip or stop with several learners")
        if config.replay_from is not None:
            refuse("replay_from", config.replay_from, "left out with several learners")
    elif config.population != "auto":
        refuse("population", config.population, "auto with one learner (num_seeds=1, no sweep)")
    if config.replicas == 1:
        for name in ("mapping", "average_every", "compression"):
            default = default_of(config, name)
            if getattr(config, name) != default:
                refuse(name, getattr(config, name), f"{default} unless replicas learn together, "
                        "with one learner and devices above 1")  # fmt: skip
    if config.average_every is None:
        if config.average_moments:
            refuse("average_moments", True, "left False unless average_every is given")
        return
    steps, every = config.gradient_steps_per_iteration, config.average_every
    if every % steps and steps % every:
        refuse("average_every", every, f"a multiple or a divisor of the {steps} gradient steps "
                "of an iteration")  # fmt: skip
    if config.compression != "none":
        refuse("compression", config.compression, "none with average_every, which sends no "
                "gradients")  # fmt: skip
    if config.has_periodic_target and config.target_period % every:
        refuse("target_period", config.target_period, f"a multiple of average_every={every}, so "
                "that the target is of averaged parameters")  # fmt: skip
