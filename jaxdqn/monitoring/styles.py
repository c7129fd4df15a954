"""Colours and line styles of plots, distinguishable in print and by colour-blind readers."""

from __future__ import annotations

import itertools

# Palette of Okabe and Ito without yellow, which is too pale on white. Further lines repeat the
# seven colours dashed, then dotted.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def styles() -> list[tuple[str, str]]:
    """Return the pairs (line style, colour) in order of use."""
    return list(itertools.product(LINES, COLOURS))
