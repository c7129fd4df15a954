"""The Python blocks of the pages run as written, and the names in them exist."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT, blocks_of, name_of

_OWN_TEST = "docs/change-any-part.md"
"""Page whose programs ``test_change_any_part.py`` runs."""

ALL = {
    f"{name_of(page)} {index}": block
    for page in PAGES
    for index, block in enumerate(block for block in blocks_of(page) if block.language == "python")
}
BLOCKS = {name: block.text for name, block in ALL.items() if block.reason is None}

FAST = ("CONTRIBUTING.md 0", "docs/guide.md 0")
"""Blocks that train nothing and build nothing large."""


@pytest.fixture(autouse=True)
def _optional_packages(request):
    """Skip a block that needs a package which is not installed."""
    callspec = getattr(request.node, "callspec", None)
    block = callspec.params["block"] if callspec else ""
    for mark, name in (("import optuna\n", "optuna"), ("RayEngine(", "ray")):
        if mark in block and not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}")


@pytest.mark.parametrize("block", [pytest.param(text, id=name) for name, text in BLOCKS.items()])
def test_every_name_that_a_block_imports_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


@pytest.mark.parametrize("block", [pytest.param(text, id=name) for name, text in BLOCKS.items()])
def test_every_attribute_of_the_package_that_a_block_uses_exists(block):
    import jaxdqn

    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "jaxdqn"
    }
    missing = {name for name in used if not hasattr(jaxdqn, name)}
    assert not missing


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(text, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, text in BLOCKS.items()
        if not name.startswith(_OWN_TEST)
    ],
)
def test_a_block_runs_as_written(block, tmp_path):
    # A separate process, because a block may set the number of devices before JAX starts.
    ended = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env={**os.environ, "NPROC": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_the_fast_blocks_are_there():
    assert set(FAST) <= set(BLOCKS)
