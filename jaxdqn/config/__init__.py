"""Configuration of a run: options, validation and presets. Imports no JAX."""

from jaxdqn.config.config import Config, from_dict, replace, to_dict

__all__ = ["Config", "from_dict", "replace", "to_dict"]
