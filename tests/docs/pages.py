"""Read the pages of documentation: their code blocks, commands, links and paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"jaxdqn \w+ \S|python -m \w+\.")


def name_of(page: Path) -> str:
    """Return a page's path from the root of the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a language; commands have none, ``""``."""
    return [text for label, text in _BLOCK.findall(page.read_text(encoding="utf-8"))
            if label == language]  # fmt: skip


def inline_code(page: Path) -> list[str]:
    """Return the code spans of a page, outside its fenced blocks."""
    return _INLINE.findall(_without_blocks(page))


def _without_blocks(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def shell_texts(page: Path) -> list[str]:
    """Return the command blocks of a page, and the commands in its tables."""
    rows = [line for line in _without_blocks(page).splitlines() if line.startswith("|")]
    spans = [span for row in rows for span in _INLINE.findall(row) if _COMMAND.match(span)]
    return [*blocks(page, ""), *spans]


def commands(text: str, directory: Path) -> list[list[str]]:
    """Return the arguments of each ``jaxdqn`` and ``python`` command that bash runs for ``text``.

    Bash expands loops, braces and variables; both programs are replaced by one that writes its
    arguments to a file. Every other program does nothing.
    """
    programs, calls = directory / "programs", directory / "calls"
    programs.mkdir(parents=True)
    calls.mkdir()
    recorder = f"#!{sys.executable}\nimport json, os, sys\n"
    recorder += f"file = os.path.join({str(calls)!r}, str(os.getpid()))\n"
    recorder += "json.dump([os.path.basename(sys.argv[0]), *sys.argv[1:]], open(file, 'w'))\n"
    for name in ("jaxdqn", "python"):
        _write_program(programs / name, recorder)
    work = directory / "work"
    work.mkdir()
    subprocess.run(
        ["/bin/bash", "-euc", f"command_not_found_handle() {{ :; }}\n{text}\nwait"],
        env={"PATH": str(programs), "HOME": os.fspath(directory)},
        cwd=work,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return [json.loads(file.read_text()) for file in sorted(calls.iterdir(), key=_age)]


def _age(file: Path) -> int:
    return file.stat().st_mtime_ns


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def links(page: Path) -> Iterator[Path]:
    """Yield the files that a page links to."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            yield (page.parent / target).resolve()
