"""Read the pages of documentation: their code blocks, commands, links and paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_BLOCK = re.compile(
    r"^(?P<mark>[ ]*<!-- not run: (?P<reason>[^>]*) -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`([^`\n]+)`")
_INDENTED = re.compile(
    r"^(?: {4}|\t)\s*(?:\$ )?(?:jaxdqn|python|pip|make|docker|tensorboard) .*$", re.MULTILINE
)
_COMMAND = re.compile(r"jaxdqn \w+ \S|python -m \w+\.")


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    """Word after the fence; commands have none, ``""``."""
    text: str
    reason: str | None
    """Reason for which the block is not run; None if it is."""


def name_of(page: Path) -> str:
    """Return a page's path from the root of the repository."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], textwrap.dedent(found["text"]), found["reason"])
        for found in _BLOCK.finditer(text)
    ]


def blocks(page: Path, language: str) -> list[str]:
    """Return the texts of the blocks of a language."""
    return [block.text for block in blocks_of(page) if block.language == language]


def inline_code(page: Path) -> list[str]:
    """Return the code spans of a page, outside its fenced blocks."""
    return _INLINE.findall(_without_blocks(page))


def _without_blocks(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def indented_commands(page: Path) -> list[str]:
    """Return the commands of a page that are set apart by indentation instead of a fence."""
    return _INDENTED.findall(_without_blocks(page))


def shell_texts(page: Path) -> list[str]:
    """Return the command blocks of a page, and the commands in its tables.

    A block that is not run counts only if it has a command of the package.
    """
    rows = [line for line in _without_blocks(page).splitlines() if line.startswith("|")]
    spans = [span for row in rows for span in _INLINE.findall(row) if _COMMAND.match(span)]
    found = [block for block in blocks_of(page) if block.language == ""]
    texts = [block.text for block in found if block.reason is None or "jaxdqn run" in block.text]
    return [*texts, *spans]


def commands(text: str, directory: Path) -> list[list[str]]:
    """Return the arguments of each ``jaxdqn`` and ``python`` command that bash runs for ``text``.

    Both programs are replaced by one that writes its arguments to a file.
    """
    calls = directory / "calls"
    calls.mkdir(parents=True)
    recorder = f"#!{sys.executable}\nimport json, os, sys\n"
    recorder += f"file = os.path.join({str(calls)!r}, str(os.getpid()))\n"
    recorder += "json.dump([os.path.basename(sys.argv[0]), *sys.argv[1:]], open(file, 'w'))\n"
    work = directory / "work"
    work.mkdir()
    run_shell(text, {"jaxdqn": recorder, "python": recorder}, directory, work)
    return [json.loads(file.read_text()) for file in sorted(calls.iterdir(), key=_age)]


def run_shell(
    text: str, programs: dict[str, str], directory: Path, work: Path, timeout: float = 60
) -> str:
    """Run ``text`` by bash in ``work`` with nothing but ``programs``; return the output.

    Bash expands loops, braces and variables. Every other program does nothing.
    """
    folder = directory / "programs"
    folder.mkdir(parents=True)
    for name, program in programs.items():
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    # `wait` returns the status of the last job only.
    waiting = "for job in $(jobs -p); do wait $job; done"
    ended = subprocess.run(
        ["/bin/bash", "-euc", f"command_not_found_handle() {{ :; }}\n{text}\n{waiting}"],
        env={"PATH": os.fspath(folder), "HOME": os.fspath(directory)},
        cwd=work,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    return ended.stdout


def _age(file: Path) -> int:
    return file.stat().st_mtime_ns


def links(page: Path) -> Iterator[Path]:
    """Yield the files that a page links to."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            yield (page.parent / target).resolve()
