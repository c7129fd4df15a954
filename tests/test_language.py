"""Language of the code and the documentation: docstring openers, and words that are not used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OPENERS = ("What", "How", "Whether", "Which", "Where", "When", "Why", "Say")
"""First words that no docstring has: it opens with an imperative or a noun phrase."""

WORDS = (
    "anew",
    "refuse",
    "refused",
    "refuses",
    "go on",
    "goes on",
    "to the bit",
    "speak",
    "speaks",
    "of its own",
    "of their own",
)
"""Words with a standard term: again, raise or reject, continue or resume, bitwise identical,
communicate, and ``its`` or ``separate`` before the noun."""

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""Pages outside ``docs``."""

TECHNIQUES = ROOT / "benchmarks/techniques/table.toml"
"""Source of ``docs/techniques.md``."""

_OPENER = re.compile(rf"({'|'.join(OPENERS)})\b")
_SPACE = r"[\s#]+"
_WORD = re.compile(rf"\b({'|'.join(WORDS).replace(' ', _SPACE)})\b", re.IGNORECASE)


def python_files() -> Iterator[Path]:
    for folder in ("jaxdqn", "experiments", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")


def pages() -> Iterator[Path]:
    yield from (ROOT / name for name in PAGES)
    yield from (ROOT / "docs").rglob("*.md")


def wrong_openers(source: str) -> list[str]:
    """Return line number and first line of each docstring that opens with one of ``OPENERS``.

    A string below a field of a class or a module is the docstring of that field.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str) and _OPENER.match(text.strip()):
                found.append(f"{node.lineno}: {text.strip().splitlines()[0]}")
    return found


def unused_words(text: str) -> list[str]:
    """Return line number and text of each of ``WORDS``, also if a line break divides it."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]}" for match in _WORD.finditer(text)
    ]


def test_no_docstring_opens_with_a_question_word():
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in python_files()
        for line in wrong_openers(file.read_text())
    ]
    assert not found, "\n".join(found)


def test_the_code_and_the_pages_use_standard_terms():
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in (*python_files(), *pages(), TECHNIQUES)
        for line in unused_words(file.read_text())
    ]
    assert not found, "\n".join(found)


def test_the_folders_are_not_empty():
    files = list(python_files())
    assert {file.relative_to(ROOT).parts[0] for file in files} == {
        "jaxdqn",
        "experiments",
        "benchmarks",
    }
    assert len(files) > 100
    texts = [*pages(), TECHNIQUES]
    assert {ROOT / "README.md", ROOT / "docs/projects/devices.md"} < {*texts}
    assert all(file.is_file() for file in texts)


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    "source",
    [
        '"""{} it is.\n\nMore."""',
        'class A:\n    """\n    {} it is."""',
        'class A:\n    size: int\n    """{} it is."""',
        'def outer():\n    def inner():\n        """{} it is."""',
        'async def f():\n    """{} it is."""',
    ],
)
def test_a_planted_opener_is_found(opener, source):
    assert len(wrong_openers(source.format(opener))) == 1
    assert not wrong_openers(source.format(f"Return {opener.lower()}"))
    assert not wrong_openers(source.format(f"{opener}ever"))


@pytest.mark.parametrize("word", WORDS)
def test_a_planted_word_is_found(word):
    assert unused_words(f"# one\n# to {word}.") == [f"2: {word}"]
    assert len(unused_words(f"x = 'it {word.upper()}'")) == 1
    assert len(unused_words("# " + word.replace(" ", "\n    # "))) == 1
    assert not unused_words(f"x{word}, {word}y: ago on, refuser, to the bits")
