"""The ratios on the page of comparisons are those of the recorded measurements."""

import json
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
_RATIO = re.compile(r"([\d.]+) \(([\d.]+)\N{EN DASH}([\d.]+)\)")
RECORDED = (
    ("Stable-Baselines3", [("versus", "sb3"), ("versus-host", "sb3-host K=4 B=32 M=1"),
                           ("versus-host", "sb3-host K=32 B=64 M=16")]),
    ("SBX", [("versus", "sbx"), ("versus-host", "sbx-host K=4 B=32 M=1"),
             ("versus-host", "sbx-host K=32 B=64 M=16")]),
    ("CleanRL", [("versus", "cleanrl")]),
    ("purejaxrl", [("versus-jax", "purejaxrl"), ("versus-one-thread", "purejaxrl")]),
    ("purejaxql", [("versus-jax", "purejaxql")]),
    ("Ray RLlib", [("versus-rllib", "rllib")]),
)  # fmt: skip
"""Library of each row, and the file and the peer of each of its ratios, in order."""


def recorded(file, peer):
    """Return the median and the interval of a ratio from a file of results."""
    results = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["results"]
    (ratio,) = [result["ratio"] for result in results if result["peer"] == peer]
    return ratio["median"], ratio["low"], ratio["high"]


def ratios(library):
    """Return the ratios in the last column of the row of a library, as text."""
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| [{library}](")]
    return _RATIO.findall(row.split(" | ")[-1])


@pytest.mark.parametrize(("library", "measurements"), RECORDED, ids=[row[0] for row in RECORDED])
def test_the_ratios_of_a_library_are_those_measured(library, measurements):
    shown = ratios(library)
    assert len(shown) == len(measurements)
    for texts, (file, peer) in zip(shown, measurements, strict=True):
        for text, value in zip(texts, recorded(file, peer), strict=True):
            digits = len(text.partition(".")[2])
            assert abs(float(text) - value) <= 0.5001 * 10**-digits, (file, peer, text, value)


def test_every_ratio_of_the_page_is_checked():
    libraries = re.findall(r"^\| \[([^\]]+)\]", PAGE, re.MULTILINE)
    measured = {library for library in libraries if ratios(library)}
    assert measured == {library for library, _ in RECORDED}
