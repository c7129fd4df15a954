"""Evaluation of a policy in an environment other than its training environment.

Both environments must have the same observations and actions, or a registered mapping must
translate them. Mappings between the MinAtar games of gymnax and of the authors' package are
registered.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdqn.envs.autoreset import AutoresetStep, StepFunction, advance_of
from jaxdqn.envs.vector.base import HostEnvironment, VectorEnvironment
from jaxdqn.types import Environment, EnvSpec, TimeStep


class EnvMapping(NamedTuple):
    """Translation between a policy and an environment that it was not trained in."""

    actions: tuple[int, ...] | None = None
    """[A], the environment's action for each action of the policy; None if actions are equal."""
    observe: Callable[[Any], Any] | None = None
    """``observe(obs) -> obs``: convert one observation of the environment for the policy; works on
    NumPy and JAX arrays. None if the observations are equal."""


MappingFunction = Callable[[EnvSpec, EnvSpec], EnvMapping]
"""``mapping(policy, environment) -> EnvMapping`` from the two specifications"""

_MAPPINGS: dict[tuple[str, str], MappingFunction] = {}


def register_mapping(policy: str, environment: str, mapping: EnvMapping | MappingFunction) -> None:
    """Register a mapping that lets policies of one environment play in another.

    Args:
      policy: name of the training environment.
      environment: name of the other environment.
      mapping: an ``EnvMapping``, or a function of the two specifications that returns one.
    """
    function = (lambda *specs: mapping) if isinstance(mapping, EnvMapping) else mapping
    _MAPPINGS[policy, environment] = function


def as_judge(
    environment: Environment | HostEnvironment, policy: EnvSpec
) -> Environment | HostEnvironment:
    """Convert an environment to the observations and actions of a policy.

    Args:
      environment: environment on the device or on the host.
      policy: specification of the training environment of the policy.

    Raises:
      ValueError: if the specifications differ and no mapping is registered, or the mapping is
        invalid.
    """
    spec = environment.spec
    function = _MAPPINGS.get((policy.name, spec.name))
    mapping = EnvMapping() if function is None else function(policy, spec)
    _check_actions(mapping, policy, spec)
    found = _mapped_spec(spec, mapping)
    if _interface(found) != _interface(policy):
        hint = "" if function else "; translate them with jaxdqn.envs.judge.register_mapping"
        raise ValueError(
            f"on={spec.name!r}: must have the observations and actions of the policy, "
            f"{_text(policy)} in {policy.name!r}, not {_text(found)}{hint}"
        )
    if mapping == EnvMapping():
        return environment
    if isinstance(environment, HostEnvironment):
        return _on_host(environment, mapping, found)
    return _on_device(environment, mapping, found)


def _interface(spec: EnvSpec) -> tuple[Any, ...]:
    return tuple(spec.obs_shape), np.dtype(spec.obs_dtype), spec.num_actions, spec.masked


def _text(spec: EnvSpec) -> str:
    masks = " with masks" if spec.masked else ""
    return f"{np.dtype(spec.obs_dtype)}{list(spec.obs_shape)} and {spec.num_actions} actions{masks}"


def _check_actions(mapping: EnvMapping, policy: EnvSpec, spec: EnvSpec) -> None:
    actions = mapping.actions
    if actions is None:
        return
    valid = all(0 <= action < spec.num_actions for action in actions)
    if len(actions) != policy.num_actions or not valid:
        raise ValueError(
            f"actions={list(actions)}: must map each of the {policy.num_actions} actions of "
            f"{policy.name!r} to one of the {spec.num_actions} of {spec.name!r}"
        )


def _mapped_spec(spec: EnvSpec, mapping: EnvMapping) -> EnvSpec:
    """Return the specification after the mapping, as the policy sees it."""
    if mapping.actions is not None:
        spec = spec._replace(num_actions=len(mapping.actions))
    if mapping.observe is not None:
        seen = np.asarray(mapping.observe(np.zeros(spec.obs_shape, spec.obs_dtype)))
        spec = spec._replace(obs_shape=seen.shape, obs_dtype=seen.dtype)
    return spec


def _on_device(environment: Environment, mapping: EnvMapping, spec: EnvSpec) -> Environment:
    observe = mapping.observe or (lambda obs: obs)

    def seen(state: Any, timestep: TimeStep) -> tuple[Any, TimeStep]:
        timestep = timestep._replace(obs=observe(timestep.obs))
        return state, _with_mask(timestep, mapping.actions)

    def mapped(step: StepFunction) -> StepFunction:
        def run(key: Any, state: Any, action: Any) -> tuple[Any, TimeStep]:
            if mapping.actions is not None:
                action = jnp.asarray(mapping.actions, jnp.int32)[action]
            return seen(*step(key, state, action))

        return run

    advance = advance_of(environment)
    step = mapped(environment.step)
    return environment._replace(
        reset=lambda key: seen(*environment.reset(key)),
        step=step if advance is None else AutoresetStep(step, mapped(advance)),
        spec=spec,
    )


def _on_host(environment: HostEnvironment, mapping: EnvMapping, spec: EnvSpec) -> HostEnvironment:
    drawable: Any = environment.make_drawable
    make = environment.to_evaluate().make
    seen: dict[str, Any] = {}
    if mapping.observe is not None:  # the bounds are those of the observations before the mapping
        seen = {"bounds": None, "check_bounds": False}
    return environment._replace(
        **seen,
        spec=spec,
        make=lambda num_envs: _MappedEnvironments(make(num_envs), mapping),
        make_to_evaluate=None,
        make_drawable=drawable and (lambda: _MappedEnvironments(drawable(), mapping)),
    )


def _with_mask(timestep: TimeStep, actions: Any) -> TimeStep:
    """Convert the mask of a time step, if any, to the actions of the policy."""
    if actions is None or isinstance(timestep.legal, tuple):  # the tuple is empty
        return timestep
    return timestep._replace(legal=timestep.legal[..., np.asarray(actions)])


class _MappedEnvironments:
    """A ``VectorEnvironment`` with translated observations and actions."""

    def __init__(self, envs: VectorEnvironment, mapping: EnvMapping) -> None:
        self._envs, self._observe = envs, mapping.observe
        self._actions = None if mapping.actions is None else np.array(mapping.actions, np.int32)
        self.close = envs.close

    def reset(self, seed: int) -> TimeStep:
        return self._seen(self._envs.reset(seed))

    def step(self, actions: np.ndarray) -> TimeStep:
        table = self._actions
        return self._seen(self._envs.step(actions if table is None else table[actions]))

    def render(self) -> Any:
        envs: Any = self._envs
        return envs.render()

    def _seen(self, timestep: TimeStep) -> TimeStep:
        timestep = _with_mask(timestep, self._actions)
        if self._observe is None:
            return timestep
        obs: Any = np.stack([self._observe(obs) for obs in np.asarray(timestep.obs)])
        return timestep._replace(obs=obs)


_EFFECTIVE = {
    "Asterix": (0, 1, 2, 3, 4),
    "Breakout": (0, 1, 3),
    "Freeway": (0, 2, 4),
    "Seaquest": (0, 1, 2, 3, 4, 5),
    "SpaceInvaders": (0, 1, 3, 5),
}
"""Actions of each MinAtar game that have an effect, as indices into n, l, u, r, d, f. The order is
that of the minimal action set, which is the same in gymnax and in the authors' package."""


def _register_minatar(game: str) -> None:
    """Register the mappings between the forms of a game: all six actions, or the effective ones.

    All forms have the same channels. An action that the environment lacks has no effect in the
    game, so it is mapped to action 0, which also has no effect.
    """
    effective = _EFFECTIVE[game]

    def mapping(policy: EnvSpec, environment: EnvSpec) -> EnvMapping:
        there = _full_or(effective, environment.num_actions)
        here = _full_or(effective, policy.num_actions)
        actions = tuple(there.index(each) if each in there else 0 for each in here)
        return EnvMapping() if here == there else EnvMapping(actions)

    names = [f"{game}-MinAtar", *(f"gymnasium:MinAtar/{game}-v{version}" for version in (0, 1))]
    for policy, environment in product(names, names):
        register_mapping(policy, environment, mapping)


def _full_or(effective: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the action set of a game that has ``count`` actions."""
    return effective if count == len(effective) else tuple(range(6))


for _game in _EFFECTIVE:
    _register_minatar(_game)
