"""Layout of the code: every import points downwards, and there are no import cycles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("errors",),
    ("config",),
    ("types",),
    ("tree", "lazy_modules", "backend_choices"),
    ("loops",),
    ("losses", "envs", "communication"),
    ("networks", "replay"),
    ("agent",),
    ("training",),
    ("parallel",),
    ("storage",),
    ("monitoring", "export"),
    ("run",),
    ("actor_learner",),
    ("cli",),
    ("experiments", "benchmarks"),
)
"""Chapters of ``jaxdqn`` from the ground up, then the top-level folders that use it."""

FLOOR_OF = {chapter: floor for floor, chapters in enumerate(FLOORS) for chapter in chapters}


def module_name(file: Path, root: Path) -> str:
    """Return the dotted name of a module; for a package, that of its folder."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    """Return every module below ``root`` that belongs to the project."""
    files = [path for top in ("jaxdqn", "experiments", "benchmarks") for path in
             (root / top).rglob("*.py")]  # fmt: skip
    return {module_name(file, root): file for file in files}


def imports_of(file: Path, known: set[str], *, top_level: bool) -> set[str]:
    """Return the project's modules that a file imports.

    With ``top_level``, omit imports that do not run when the file is imported: those inside
    functions and those under ``TYPE_CHECKING``.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    found.add(inner)
                elif node.module in known:
                    found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def chapter_of(module: str) -> str | None:
    """Return the chapter of a module; None for ``jaxdqn`` itself, which names every chapter."""
    top, _, rest = module.partition(".")
    if top != "jaxdqn":
        return top
    return rest.partition(".")[0] or None


def upward_imports(root: Path) -> list[str]:
    """Return each import of a chapter that stands above, or beside, the importing one."""
    known = modules(root)
    wrong = []
    for module, file in known.items():
        here = chapter_of(module)
        if here in (None, "__main__"):
            continue
        for imported in imports_of(file, set(known), top_level=False):
            there = chapter_of(imported)
            if there is None or there == here:
                continue
            if FLOOR_OF[there] >= FLOOR_OF[here] and not {here, there} <= {
                "experiments",
                "benchmarks",
            }:
                wrong.append(f"{module} imports {imported}")
    return wrong


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Return the modules of an import cycle; None if there is none."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> list[str] | None:
        state[module] = 1
        path.append(module)
        for imported in sorted(graph.get(module, ())):
            if state.get(imported) == 1:
                return [*path[path.index(imported) :], imported]
            if imported not in state and (found := visit(imported)) is not None:
                return found
        path.pop()
        state[module] = 2
        return None

    for module in sorted(graph):
        if module not in state and (found := visit(module)) is not None:
            return found
    return None


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return the imports that run when each module is imported, its parent packages included."""
    known = modules(root)
    graph = {}
    for module, file in known.items():
        imported = imports_of(file, set(known), top_level=True)
        graph[module] = imported - {module}
    return graph


def test_every_chapter_has_a_floor():
    chapters = {chapter_of(module) for module in modules(ROOT)} - {None, "__main__"}
    assert chapters <= set(FLOOR_OF)


def test_every_import_points_down():
    assert upward_imports(ROOT) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(import_graph(ROOT)) is None


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, None),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
    ],
)
def test_a_circle_is_found(graph, found):
    assert circle(graph) == found


def test_an_import_that_points_up_is_found(tmp_path):
    for path, text in {
        "jaxdqn/__init__.py": "",
        "jaxdqn/losses/__init__.py": "",
        "jaxdqn/losses/td.py": "def f():\n    from jaxdqn.training import trainer\n",
        "jaxdqn/training/__init__.py": "",
        "jaxdqn/training/trainer.py": "from jaxdqn.losses import td\n",
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert upward_imports(tmp_path) == ["jaxdqn.losses.td imports jaxdqn.training.trainer"]
