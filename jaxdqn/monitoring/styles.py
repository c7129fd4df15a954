"""Colours and lines of pictures, readable with colour blindness and in print."""

from __future__ import annotations

import itertools

# Okabe and Ito's palette without its yellow, which is too pale on white. Further lines repeat the
# seven colours dashed, then dotted.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def styles() -> list[tuple[str, str]]:
    """Return the pairs (line style, colour) in the order of their use."""
    return list(itertools.product(LINES, COLOURS))
