"""jaxdqn: DQN training on accelerators, as pure functions and mappings over them.

Public names are imported at first use, so that ``import jaxdqn`` and ``jaxdqn run --help`` do not
wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxdqn.agent.agent import make_agent
    from jaxdqn.agent.optimizer import make_optimizer
    from jaxdqn.config.config import Config
    from jaxdqn.config.loss_registry import register_loss
    from jaxdqn.config.presets import PRESETS, preset
    from jaxdqn.envs import make as make_env
    from jaxdqn.envs.base import make_environment
    from jaxdqn.errors import EndRun
    from jaxdqn.export.export_run import export_policy
    from jaxdqn.export.policy import load_policy
    from jaxdqn.networks import make_network
    from jaxdqn.parallel import across_devices, device_collectives
    from jaxdqn.parallel.population import population
    from jaxdqn.replay import make_sequence, make_uniform
    from jaxdqn.training.algorithms import make_learning
    from jaxdqn.training.evaluation import make_evaluator
    from jaxdqn.training.hyper import hyper_from
    from jaxdqn.training.learning import Learning, make_update
    from jaxdqn.training.trainer import make_trainer, train

_MODULES = {  # NAME: module, or module:ATTRIBUTE if the attribute has another name
    "Config": "config",
    "EndRun": "errors",
    "Learning": "training.learning",
    "PRESETS": "config.presets",
    "across_devices": "parallel",
    "device_collectives": "communication.collectives",
    "export_policy": "export.export_run",
    "hyper_from": "training.hyper",
    "load_policy": "export.policy",
    "make_agent": "agent",
    "make_env": "envs:make",
    "make_environment": "envs.base",
    "make_evaluator": "training.evaluation",
    "make_learning": "training.algorithms",
    "make_network": "networks",
    "make_optimizer": "agent.optimizer",
    "make_sequence": "replay",
    "make_trainer": "training.trainer",
    "make_uniform": "replay",
    "make_update": "training.learning",
    "population": "parallel",
    "preset": "config.presets",
    "register_loss": "config.loss_registry",
    "train": "training.trainer",
}

__all__ = [
    "PRESETS",
    "Config",
    "EndRun",
    "Learning",
    "across_devices",
    "device_collectives",
    "export_policy",
    "hyper_from",
    "load_policy",
    "make_agent",
    "make_env",
    "make_environment",
    "make_evaluator",
    "make_learning",
    "make_network",
    "make_optimizer",
    "make_sequence",
    "make_trainer",
    "make_uniform",
    "make_update",
    "population",
    "preset",
    "register_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
