"""jaxdqn: DQN training on accelerators, as pure functions and mappings over them.

Names are imported when first used, so that ``import jaxdqn`` and the command
line's ``--help`` do not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxdqn.agent import make_agent
    from jaxdqn.config import Config
    from jaxdqn.envs import make as make_env
    from jaxdqn.envs.base import make_environment
    from jaxdqn.evaluation import make_evaluator
    from jaxdqn.mappings import across_devices, device_collectives
    from jaxdqn.mappings.population import population
    from jaxdqn.networks import make_network
    from jaxdqn.optim import make_optimizer
    from jaxdqn.policy import load_policy
    from jaxdqn.presets import PRESETS, preset
    from jaxdqn.registry import register_loss
    from jaxdqn.replay import make_sequence, make_uniform
    from jaxdqn.trainer import hyper_from, make_chunk, make_trainer, train

_HOME = {
    "Config": "config",
    "PRESETS": "presets",
    "across_devices": "mappings",
    "device_collectives": "mappings",
    "hyper_from": "trainer",
    "load_policy": "policy",
    "make_agent": "agent",
    "make_chunk": "trainer",
    "make_env": "envs:make",
    "make_environment": "envs.base",
    "make_evaluator": "evaluation",
    "make_network": "networks",
    "make_optimizer": "optim",
    "make_sequence": "replay",
    "make_trainer": "trainer",
    "make_uniform": "replay",
    "population": "mappings",
    "preset": "presets",
    "register_loss": "registry",
    "train": "trainer",
}

__all__ = [
    "PRESETS",
    "Config",
    "across_devices",
    "device_collectives",
    "hyper_from",
    "load_policy",
    "make_agent",
    "make_chunk",
    "make_env",
    "make_environment",
    "make_evaluator",
    "make_network",
    "make_optimizer",
    "make_sequence",
    "make_trainer",
    "make_uniform",
    "population",
    "preset",
    "register_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
