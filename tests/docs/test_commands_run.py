"""Every ``jaxdqn`` command of the pages runs, at small size; each block in its own directory."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from jaxdqn.storage.directory import CONFIG
from tests.docs.pages import (
    PAGES,
    ROOT,
    blocks,
    blocks_of,
    indented_commands,
    name_of,
    run_shell,
)
from tests.docs.small_command import PREPARED
from tests.toys import QUICK

COMMAND_BLOCKS = {
    f"{name_of(page)} {index}": block
    for page in PAGES
    for index, block in enumerate(blocks_of(page))
    if block.language == "" and "jaxdqn " in block.text
}
PREPARED_RUNS = (
    "a",
    "b",
    "again",
    "first",
    "second",
    "two",
    "long",
    "mine",
    "short",
    "cart",
    "host",
)
"""Runs that a page names before or after the block that makes them."""

_CODE = re.compile(r"^\s*(jaxdqn |python -m |pip |import |from \w+ import )", re.MULTILINE)


def test_a_block_that_is_not_run_has_a_reason():
    reasons = {
        f"{name_of(page)} {index}": block.reason
        for page in PAGES
        for index, block in enumerate(blocks_of(page))
        if block.reason is not None
    }
    assert reasons
    assert all(len(reason.split()) >= 3 for reason in reasons.values()), reasons


def test_every_block_has_a_language_that_is_tested():
    languages = {block.language for page in PAGES for block in blocks_of(page)}
    assert languages <= {"", "python", "text", "{eval-rst}"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_of_text_has_no_code_that_could_run(page):
    assert [text for text in blocks(page, "text") if _CODE.search(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_fenced_so_that_they_are_run(page):
    assert indented_commands(page) == []


def test_an_indented_command_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("So:\n\n    jaxdqn run a\n\n```\nif true; then\n    jaxdqn run b\nfi\n```\n")
    assert indented_commands(page) == ["    jaxdqn run a"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Return the text of a program that replaces ``jaxdqn``."""
    cache = tmp_path_factory.mktemp("cache")
    flags = " ".join(f"--{name}={value}" for name, value in QUICK.items())
    return (
        f"#!/bin/bash\nexport PATH={os.defpath} NPROC=1 PYTHONPATH={ROOT}\n"
        f"export XDG_CACHE_HOME={cache} XLA_FLAGS='{flags}'\n"
        f'exec {sys.executable} -m tests.docs.small_command "$@"\n'
    )


@pytest.fixture(scope="module")
def prepared(program, tmp_path_factory):
    """Train one run, which stands for every run that a block does not make itself."""
    directory = tmp_path_factory.mktemp("prepared")
    run_shell("jaxdqn run cartpole --out run", {"jaxdqn": program}, directory, directory, 300)
    assert (directory / "run" / CONFIG).exists()
    (directory / "run" / PREPARED).touch()
    return directory / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block.text, id=name)
        for name, block in COMMAND_BLOCKS.items()
        if block.reason is None
    ],
)
def test_the_commands_of_a_block_run(block, program, prepared, tmp_path):
    work = tmp_path / "work"
    for name in (*(f"runs/{name}" for name in PREPARED_RUNS), "RUN"):
        if name in block:
            shutil.copytree(prepared, work / name)
    work.mkdir(exist_ok=True)
    (work / "experiments").symlink_to(ROOT / "experiments")
    (corridor,) = blocks(ROOT / "docs/guide.md", "python")
    for name in ("corridor", "maze"):
        (work / f"{name}.py").write_text(corridor)
    print(run_shell(block, {"jaxdqn": program, "python": "#!/bin/bash\n"}, tmp_path, work, 900))


def test_commands_are_made_small(tmp_path):
    text = "from tests.docs.small_command import shrunk; import sys; print(*shrunk(sys.argv[1:]))"
    given = ["run", "atari", "--total-rows", "50000"]
    ended = subprocess.run(
        [sys.executable, "-c", text, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    words = ended.stdout.split()
    assert words[:4] == given
    assert words[words.index("--replay-capacity") + 1] == "16000"
    assert "--total-rows 2200" in " ".join(words[4:])
