"""The files, folders, tests and links that the pages name exist."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, inline_code, links, name_of

CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages about the code as it is; the changelog names former files too."""

_PATH = re.compile(r"(?:jaxdqn|tests|docs|benchmarks|experiments|requirements)/[\w./*-]*")


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_paths_in_code_spans_exist(page):
    paths = [span for span in inline_code(page) if _PATH.fullmatch(span)]
    missing = [path for path in paths if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    assert [target for target in links(page) if not target.exists()] == []


def places_to_add():
    """Yield what can be added, and its folder, files and tests, from the table in CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where would I add")[2].partition("\n\n")[0]
    for line in table.splitlines():
        if line.startswith("| a"):
            yield tuple(cell.strip() for cell in line.strip("|").split("|"))


@pytest.mark.parametrize(
    ("thing", "folder", "entry", "tests"), [*places_to_add()], ids=lambda cell: cell[:30]
)
def test_the_place_to_add_a_thing_exists(thing, folder, entry, tests):
    folder, tests = folder.strip("`"), tests.strip("`")
    assert (ROOT / folder).is_dir()
    assert not tests or (ROOT / tests).is_dir()
    for file in re.findall(r"`([\w/]+\.(?:py|md))`", entry):
        assert (ROOT / file).is_file() or (ROOT / folder / file).is_file(), file


def test_the_places_to_add_cover_the_usual_things():
    things = {thing for thing, *_ in places_to_add()}
    assert {
        "a loss", "a network", "a replay", "an environment", "a logger", "a mapping", "a test",
        "a checkpoint format", "an option (a flag)", "a command", "a benchmark", "a preset",
    } <= things  # fmt: skip


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "index.md"
    included = {ROOT / "docs" / "contributing.md", ROOT / "docs" / "changelog.md"}
    assert set((ROOT / "docs").glob("*.md")) - {index} - included <= set(links(index))


def selections():
    """Yield the words of each ``-k`` expression on the status page."""
    for expression in re.findall(r"-k ([\w']+[^\"`]*)\"", (ROOT / "docs/status.md").read_text()):
        yield from (word for word in re.findall(r"\w+", expression) if word not in ("or", "and"))


def test_every_selection_of_tests_on_the_status_page_finds_some():
    files = set((ROOT / "tests").rglob("test_*.py")) - set((ROOT / "tests/docs").iterdir())
    text = "\n".join(f"{file.stem}\n{file.read_text(encoding='utf-8')}" for file in files)
    words = set(selections())
    assert words
    assert {word for word in words if word.lower() not in text.lower()} == set()


def test_the_readme_stays_short():
    assert 300 <= len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 450
