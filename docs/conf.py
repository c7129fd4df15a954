"""Configuration of Sphinx, which builds the documentation: `make docs`."""

import importlib
import re
from pathlib import Path

import jaxdqn
from jaxdqn.config.options import Options

project = "jaxdqn"
author = "the jaxdqn authors"
project_copyright = "2026, the jaxdqn authors"
version = release = jaxdqn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"jaxdqn {version}"
html_show_sourcelink = False
html_favicon = "images/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "text"

napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
# An annotation such as Config means the public name and its definition: two targets.
suppress_warnings = ["ref.python"]
# Packages of extras, which the documentation is built without.
autodoc_mock_imports = ["ray", "envpool", "wandb", "jax2onnx", "onnxruntime", "onnx_ir"]

_OUTSIDE = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
"""Files outside of this folder, and the pages that include them."""

_MARKUP = re.compile(r"(``.+?``|(?<![\w*])\*[a-z][\w\s-]*\*(?![\w*]))", re.DOTALL)
"""Code and emphasis."""


def _link_to_pages(app, docname, source):
    """Let links to files outside of this folder lead to the pages that include them."""
    to_root = "../" * docname.count("/")
    for target, page in _OUTSIDE.items():
        source[0] = source[0].replace(f"]({to_root}{target}", f"]({to_root}{page}")


def _use_titles(app, docname, source):
    """Replace a link text that is a file name, as GitHub readers see it, by the page's title."""
    source[0] = re.sub(r"\[[\w/-]+\.md\](?=\([\w./-]+\.md[)#])", "[]", source[0])


def _expand_modules(app, docname, source):
    """Replace ``<!-- modules: FOLDER -->`` by the reference of every module of the folder."""
    source[0] = re.sub(r"<!-- modules: (\w+) -->", lambda found: _modules(found[1]), source[0])


def _modules(chapter):
    package = Path(jaxdqn.__file__).parent
    files = [package / f"{chapter}.py", *sorted((package / chapter).rglob("*.py"))]
    names = [
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in files
        if file.exists()
    ]
    block = "## `{0}`\n\n```{{eval-rst}}\n.. automodule:: {0}\n   :ignore-module-all:\n```\n{1}\n"
    return "\n".join(block.format(name, _public_names(name)) for name in names)


def _public_names(module):
    """Return a line that links each name of a package's ``__all__`` to its definition."""
    package = importlib.import_module(module)
    if not hasattr(package, "__all__"):
        return ""
    links = []
    for name in package.__all__:
        value = getattr(package, name)
        home = getattr(value, "__module__", module)
        links.append(f"{{py:obj}}`{name} <{home}.{name}>`" if callable(value) else f"`{name}`")
    return f"Names of this package: {', '.join(links)}.\n"


def _escape(app, what, name, obj, options, lines):
    """Escape what reStructuredText would read as other markup in a docstring."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's own, of a named tuple
        lines.clear()
        return
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # Napoleon reads the words before a colon in the first line as a type
    parts = _MARKUP.split("\n".join(lines))
    parts[::2] = [re.sub(r"([|*`\\]|(?<=\w)_\b)", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def _shorten_signature(app, what, name, obj, options, signature, return_annotation):
    """Leave the options out of the signature of a configuration; its fields list them."""
    if isinstance(obj, type) and issubclass(obj, Options):
        return "(**options)", return_annotation
    return None


def setup(app):
    app.connect("source-read", _link_to_pages)
    app.connect("source-read", _use_titles)
    app.connect("source-read", _expand_modules)
    app.connect("autodoc-process-docstring", _escape, priority=400)
    app.connect("autodoc-process-signature", _shorten_signature)
