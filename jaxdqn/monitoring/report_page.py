"""Building blocks of a self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; margin: 0; line-height: 1.2; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem;
  border-bottom: 1px solid #ccc; }
.subtitle, .note, figcaption { color: #555; }
.note, figcaption { font-size: .87rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.4rem 0 0; padding: 0; }
.tile { flex: 1 1 8.5rem; border: 1px solid #ccc; border-radius: 6px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: #555; font-size: .87rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top; }
th { color: #555; font-weight: 600; border-bottom: 1px solid #ccc; }
td { border-bottom: 1px solid #eee; overflow-wrap: anywhere; }
th.number, td.number { text-align: right; white-space: nowrap; }
pre { background: #f4f4f4; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: #0b5394; }
a { color: #0b5394; }
img, video { max-width: 100%; max-height: 26rem; border: 1px solid #ccc; border-radius: 6px; }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  h2 { break-after: avoid; }
  figure, .tile, tr, pre { break-inside: avoid; }
  details:not([open]) { display: none; }
}
"""


class Page:
    """Self-contained HTML page, built section by section.

    Args:
        title: title of the page, as text.
        subtitle: line below the title, as text.
    """

    def __init__(self, title: str, subtitle: str) -> None:
        self._title, self._subtitle = title, subtitle
        self._sections: list[str] = []

    def add(self, title: str, content: str) -> None:
        """Add a section.

        Args:
            title: heading as text; if empty, the section has no heading.
            content: content as HTML.
        """
        heading = f"<h2>{escape(title)}</h2>" if title else ""
        self._sections.append(f"<section>{heading}{content}</section>")

    def html(self) -> str:
        """Return the page as HTML."""
        body = "\n".join(self._sections)
        return (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<link rel='icon' href='data:,'><title>{escape(self._title)} · jaxdqn</title>"
            f"<style>{_STYLE}</style></head><body>"
            f"<header><h1>{escape(self._title)}</h1>"
            f"<p class='subtitle'>{escape(self._subtitle)}</p></header>\n{body}\n</body></html>\n"
        )


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Return tiles that show key results in large type.

    Args:
        items: pairs (value, meaning).
    """
    cells = "".join(
        f"<div class='tile'><b>{escape(value)}</b><span>{escape(meaning)}</span></div>"
        for value, meaning in items
    )
    return f"<div class='tiles'>{cells}</div>" if cells else ""


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric_from: int | None = None
) -> str:
    """Return a table as HTML.

    Args:
        head: titles of the columns, as text.
        rows: cells of each row, as text.
        numeric_from: index of the first right-aligned column.
    """
    first = len(head) if numeric_from is None else numeric_from

    def line(tag: str, cells: Sequence[str]) -> str:
        made = (
            f"<{tag}{' class=number' if index >= first else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        f"<div class='scroll'><table><thead>{line('th', head)}</thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(svg: str, caption: str) -> str:
    """Return a figure with a caption as HTML.

    Args:
        svg: SVG document written by matplotlib.
        caption: caption as text.
    """
    inline = svg[svg.index("<svg") :]
    # Drop the metadata: it contains URLs, and the page must be self-contained.
    inline = re.sub(r"<metadata>.*?</metadata>", "", inline, flags=re.DOTALL)
    label = f"<svg role='img' aria-label='{escape(caption)}'"
    inline = inline.replace("<svg", label, 1)
    return f"<figure>{inline}<figcaption>{escape(caption)}</figcaption></figure>"


def media(file: Path | None) -> str:
    """Return HTML that embeds a GIF or an MP4, or an empty string if ``file`` is None."""
    if file is None:
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    if file.suffix.lower() == ".mp4":
        return f"<video controls loop muted src='data:video/mp4;base64,{data}'></video>"
    return f"<img alt='An episode of the greedy policy' src='data:image/gif;base64,{data}'>"


def code(lines: Sequence[str]) -> str:
    """Return lines of text from a terminal as a preformatted HTML block."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def details(summary: str, content: str) -> str:
    """Return collapsible content as HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
