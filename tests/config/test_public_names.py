"""Public names of the package: they resolve, are documented, and are known to type checkers."""

import ast
import inspect
from pathlib import Path

import pytest

import jaxdqn
from jaxdqn.config.config import Config

CONSTANTS = {"PRESETS": dict}


@pytest.mark.parametrize("name", jaxdqn.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(jaxdqn, name)
    if name in CONSTANTS:
        assert isinstance(value, CONSTANTS[name])
        return
    docstring = inspect.getdoc(value)
    assert docstring, f"{name} has no docstring"
    # Python gives a dataclass without a docstring its signature as the docstring.
    assert not docstring.startswith(f"{name}(")
    assert value.__name__ == name or name == "make_env"


def test_public_names_are_unique_and_listed():
    assert len(set(jaxdqn.__all__)) == len(jaxdqn.__all__)
    assert set(jaxdqn.__all__) <= set(dir(jaxdqn))


def test_type_checkers_see_exactly_the_public_names():
    tree = ast.parse(Path(jaxdqn.__file__).read_text())
    declared = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == set(jaxdqn.__all__)


def test_a_star_import_gives_all_public_names():
    namespace: dict = {}
    exec("from jaxdqn import *", namespace)
    assert set(jaxdqn.__all__) <= set(namespace)


def test_an_unknown_name_raises_an_attribute_error():
    with pytest.raises(AttributeError, match="make_trianer"):
        _ = jaxdqn.make_trianer


def test_every_preset_is_a_configuration():
    assert jaxdqn.PRESETS
    assert all(isinstance(config, Config) for config in jaxdqn.PRESETS.values())
