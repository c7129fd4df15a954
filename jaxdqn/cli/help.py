"""Help of a command with many flags: a short list of everyday flags, or all flags by group.

Texts, groups and defaults come from the declarations of the flags. Imports no JAX.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from jaxdqn.config.option import Rule, rules

_FLAG_COLUMN = 26
_MOST_COLUMNS = 110
"""Maximum length of a line, also on a wider terminal; longer lines are hard to read."""

_NO_BREAK = "\xa0"
"""A space at which no line is broken."""


def requested_help(argv: Sequence[str]) -> Literal["short", "complete"] | None:
    """Return the kind of help that ``--help`` or ``--help-all`` requests; None without them."""
    if "--help-all" in argv:
        return "complete"
    return "short" if {"-h", "--help"} & set(argv) else None


def help_text(
    defaults: Any,
    *,
    usage: str,
    summary: str,
    notes: Mapping[str, Mapping[str, str] | str],
    complete: bool,
    columns: int,
) -> str:
    """Return the help of the flags that are the fields of a dataclass.

    Args:
        defaults: instance of the dataclass; its values are shown as defaults.
        usage: the command line.
        summary: one paragraph on the command.
        notes: sections after the flags, by title; a section is a text, or texts by term.
        complete: list all flags, by group, instead of the everyday flags only.
        columns: width of the terminal.
    """
    columns = min(columns, _MOST_COLUMNS)
    entries, every = _entries(defaults, columns), rules(type(defaults))
    chapters: dict[str, list[str]] = {}
    for name, rule in every.items():
        if complete or rule.everyday:
            title = rule.group if complete else "Everyday flags"
            chapters.setdefault(title, []).append(entries[name])
    chapters.setdefault("Help" if complete else "Everyday flags", []).extend(
        [
            _entry("-h, --help", "Print the everyday flags.", columns),
            _entry("--help-all", f"Print all {len(every)} flags, by group.", columns),
        ]
    )
    chapters |= {title: _note(note, columns) for title, note in notes.items()}
    return "\n\n".join(
        [
            f"usage: {usage}",
            textwrap.fill(summary, columns),
            *("\n".join([f"{title}:", *lines]) for title, lines in chapters.items()),
        ]
    )


def command_help(flags: type[Any], *, prog: str, description: str, columns: int) -> str:
    """Return the help of a command, whose flags are the fields of a dataclass.

    Args:
        flags: the dataclass. A field without a default is required. The fields of a nested
            dataclass are flags too, in a separate section with the docstring of that dataclass.
        prog: the command.
        description: paragraphs on the command.
        columns: width of the terminal.
    """
    columns = min(columns, _MOST_COLUMNS)
    chapters: dict[str, list[str]] = {"Arguments": [], "Flags": []}
    positions: list[str] = []
    for field, kind, metadata in _fields(flags):
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            entries = [_flag_entry(*each, field_docs(kind), columns) for each in _fields(kind)]
            note = " ".join((kind.__doc__ or "").split())
            chapters["Your own parts"] = [*_note(note, columns), *entries]
        elif tyro.conf.Positional in metadata:
            positions.append(_metavar(metadata) or field.name.upper())
            entry = _entry(positions[-1], _text(field, field_docs(flags)), columns)
            chapters["Arguments"].append(entry)
        else:
            entry = _flag_entry(field, kind, metadata, field_docs(flags), columns)
            chapters["Flags"].append(entry)
    chapters["Flags"].append(_entry("-h, --help", "Print this help.", columns))
    description = description.replace("``", "").strip()
    paragraphs = [" ".join(part.split()) for part in description.split("\n\n")]
    return "\n\n".join(
        [
            f"usage: {' '.join([prog, *positions, '[flags]'])}",
            *(textwrap.fill(part, columns, break_on_hyphens=False) for part in paragraphs),
            *("\n".join([f"{title}:", *lines]) for title, lines in chapters.items() if lines),
        ]
    )


def flag_types(flags: type[Any]) -> dict[str, Any]:
    """Return the type of each flag of a dataclass, including nested dataclasses, by flag."""
    types: dict[str, Any] = {}
    for field, kind, metadata in _fields(flags):
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            types |= flag_types(kind)
        else:
            name = _metavar(metadata) if tyro.conf.Positional in metadata else flag_of(field.name)
            types[name or field.name] = kind
    return types


def _fields(flags: type[Any]) -> list[tuple[dataclasses.Field[Any], Any, tuple[Any, ...]]]:
    """Return each field of a dataclass with its type and the metadata of its annotation."""
    hints = get_type_hints(flags, include_extras=True)
    found = []
    for field in dataclasses.fields(flags):
        hint = hints[field.name]
        annotated = get_origin(hint) is Annotated
        kind = get_args(hint)[0] if annotated else hint
        found.append((field, kind, get_args(hint)[1:] if annotated else ()))
    return found


def _metavar(metadata: tuple[Any, ...]) -> str | None:
    """Return the placeholder of a value in the help, if an annotation has one."""
    return next((name for each in metadata if (name := getattr(each, "metavar", None))), None)


def _flag_entry(
    field: dataclasses.Field[Any],
    kind: Any,
    metadata: tuple[Any, ...],
    docs: Mapping[str, str],
    columns: int,
) -> str:
    name, metavar = field.name, _metavar(metadata)
    syntax = _syntax(name, kind, None)
    return _entry(f"{flag_of(name)} {metavar}" if metavar else syntax, _text(field, docs), columns)


def _text(field: dataclasses.Field[Any], docs: Mapping[str, str]) -> str:
    """Return the docstring of a field with its default."""
    text = _with_flags(docs.get(field.name, ""), ())
    required = field.default is dataclasses.MISSING
    default = "(required)" if required else _default(field.default)
    return f"{text} {default}".strip()


def field_docs(flags: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, base classes included."""
    docs: dict[str, str] = {}
    for cls in reversed(flags.__mro__):
        if dataclasses.is_dataclass(cls):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
            assert isinstance(tree, ast.ClassDef)
            docs |= _docs_in(tree)
    return docs


def _docs_in(tree: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def _note(note: Mapping[str, str] | str, columns: int) -> list[str]:
    if isinstance(note, str):
        indent = "  "
        return textwrap.wrap(note, columns, initial_indent=indent, subsequent_indent=indent)
    return [_entry(term, text, columns) for term, text in note.items()]


def _entries(defaults: Any, columns: int) -> dict[str, str]:
    flags = type(defaults)
    docs, kinds, every = field_docs(flags), get_type_hints(flags), rules(flags)
    texts = {}
    for name, rule in every.items():
        default = getattr(defaults, name)
        parts = [_with_flags(docs.get(name, ""), every), _needs(rule, flags), _default(default)]
        text = " ".join(part for part in parts if part)
        texts[name] = _entry(_syntax(name, kinds[name], default), text, columns)
    return texts


def _entry(term: str, text: str, columns: int) -> str:
    margin = " " * _FLAG_COLUMN
    lines = textwrap.wrap(
        text,
        columns,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
    head, lines = f"  {term}", [line.replace(_NO_BREAK, " ") for line in lines]
    if len(head) + 2 > _FLAG_COLUMN or not lines:
        return "\n".join([head, *lines])
    return "\n".join([head.ljust(_FLAG_COLUMN) + lines[0].lstrip(), *lines[1:]])


def flag_of(name: str) -> str:
    """Return the flag of a field: ``--num-envs`` of ``num_envs``."""
    return "--" + name.rstrip("_").replace("_", "-")


def _with_flags(text: str, names: Collection[str]) -> str:
    """Return a docstring as help: remove markup, and write fields as flags (``--num-envs``)."""

    def as_flag(match: re.Match[str]) -> str:
        return flag_of(match[0]) if match[0] in names else match[0]

    return re.sub(r"\b[a-z]+(_[a-z]+)+\b", as_flag, text.replace("``", ""))


def _syntax(name: str, kind: Any, default: Any) -> str:
    flag = flag_of(name)
    if kind is bool:
        return f"--[no-]{flag[2:]}"
    can_be_unset = type(None) in get_args(kind) and default is not None
    return f"{flag} {_values(kind)}" + ("|None" if can_be_unset else "")


def _values(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        return f"[{_values(get_args(kind)[0])} ...]"
    (first, *_) = [part for part in get_args(kind) if part is not type(None)] or [kind]
    return _values(first) if first is not kind else first.__name__.upper()


def _needs(rule: Rule, flags: type[Any]) -> str:
    """Return the conditions under which an option has an effect, unless the defaults meet them."""
    texts = []
    for name, values in rule.only_with.items():
        if getattr(flags, name) in values:
            continue
        flag = flag_of(name)
        texts.append(flag if values == (True,) else f"{flag} {' or '.join(map(str, values))}")
    return f"Only with {' and '.join(texts)}." if texts else ""


def _default(value: Any) -> str:
    if value is None or value is False or value == ():
        return ""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"(default: {'on' if value is True else text})".replace(" ", _NO_BREAK)
