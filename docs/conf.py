"""Configuration of Sphinx, which builds the documentation: `make docs`."""

import re

import jaxdqn

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
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "text"

napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
# Packages of extras, which the documentation is built without.
autodoc_mock_imports = ["ray", "envpool", "wandb", "jax2onnx", "onnxruntime", "onnx_ir"]

_OUTSIDE = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
"""Files outside of this folder, and the pages that include them."""

_CODE = re.compile(r"(``.+?``)", re.DOTALL)


def _link_to_pages(app, docname, source):
    """Let links to files outside of this folder lead to the pages that include them."""
    to_root = "../" * docname.count("/")
    for target, page in _OUTSIDE.items():
        source[0] = source[0].replace(f"]({to_root}{target}", f"]({to_root}{page}")


def _escape(app, what, name, obj, options, lines):
    """Escape the markup of reStructuredText, except double backquotes, in a docstring."""
    parts = _CODE.split("\n".join(lines))
    parts[::2] = [re.sub(r"([|*`\\]|(?<=\w)_\b)", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def _skip_plain_fields(app, what, name, obj, skip, options):
    """Leave out the docstring that Python gives to a field of a named tuple without its own."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def setup(app):
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _escape, priority=400)
    app.connect("autodoc-skip-member", _skip_plain_fields)
