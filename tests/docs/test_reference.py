"""The API reference has every public name of the package."""

import ast
import re

import jaxdqn
from tests.docs.pages import ROOT

API = ROOT / "docs" / "api"
PACKAGE = ROOT / "jaxdqn"
COMMANDS = {"cli", "__main__", "__init__"}
"""Parts of the package that ``--help`` and the first page of the reference describe."""


def chapters():
    """Return the chapters that the pages of the reference expand, with their pages."""
    return {
        name: page.name
        for page in API.glob("*.md")
        for name in re.findall(r"<!-- modules: (\w+) -->", page.read_text(encoding="utf-8"))
    }


def test_the_first_page_has_the_public_names_of_the_package():
    page = (API / "index.md").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. [\w:]+:: jaxdqn\.(\w+)$", page, re.MULTILINE)
    assert sorted(found) == sorted(jaxdqn.__all__)


def test_every_chapter_is_on_a_page_and_every_page_in_the_navigation():
    modules = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py")}
    assert set(chapters()) == {name.removesuffix(".py") for name in modules} - COMMANDS
    navigation = (API / "index.md").read_text(encoding="utf-8").partition(":::{toctree}")[2]
    assert {page.removesuffix(".md") for page in chapters().values()} <= set(navigation.split())


def public_names():
    """Yield the public functions and classes that the reference must have, as MODULE.NAME."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if COMMANDS & set(parts[1:2]):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{module}.{node.name}", node


def test_every_public_name_has_a_docstring():
    # Sphinx leaves out what has none.
    assert [name for name, node in public_names() if ast.get_docstring(node) is None] == []
