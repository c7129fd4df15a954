"""Results on the page of a project: a block of Markdown, and a JSON file next to the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import around_marks, format_markdown, write_json

NOT_MEASURED = "not measured"
"""Text of a missing figure."""
_START, _END = "<!-- results -->", "<!-- end of results -->"


def check_page(page: Path) -> None:
    """Check before the runs that a page has a place for its results.

    Raises:
        ValueError: if the file does not exist, or lacks the marks around the results.
    """
    if not page.is_file():
        raise ValueError(f"page='{page}': must be the Markdown file of the project")
    around_marks(page, _START, _END)


def write_results(page: Path, record: Mapping[str, Any], blocks: Sequence[str]) -> None:
    """Replace the results of a page, and write them as JSON into ``page`` with the suffix .json.

    Args:
        page: page that ``check_page`` accepts.
        record: measurements, with the stamp of the machine.
        blocks: paragraphs and tables of Markdown.
    """
    before, after = around_marks(page, _START, _END)
    results = "\n\n".join(block.strip() for block in blocks)
    page.write_text(f"{before}{_START}\n{results}\n{_END}{after}", encoding="utf-8")
    write_json(page.with_suffix(".json"), record)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of Markdown, with ``not measured`` for None."""
    cells = [[NOT_MEASURED if cell is None else cell for cell in row] for row in rows]
    return format_markdown(header, cells)
