"""Output that cannot be written, or not in its encoding."""

import io
import os
import sys

import pytest

from jaxdqn.config.config import Config
from jaxdqn.monitoring.output import printable, say, warn
from jaxdqn.monitoring.terminal import make_progress_logger
from tests.monitoring.test_loggers import EVALUATION


def test_characters_that_an_encoding_lacks_have_substitutes():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert printable("1 ± 2 …, λ", ascii_only) == "1 +- 2 ..., ?"
    assert printable("1 ± 2", io.StringIO()) == "1 ± 2"


def test_progress_is_printed_on_an_ascii_stream():
    raw = io.BytesIO()
    logger = make_progress_logger(Config(), io.TextIOWrapper(raw, encoding="ascii"))
    logger.log("evaluation", EVALUATION)
    assert b"return 12.00 +- 0.50 over 100" in raw.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_given_up(monkeypatch, capfd):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        say("one")
        full.flush()  # its number now belongs to the null device
        say("two")
    say("three")  # closed
    monkeypatch.setattr(sys, "stdout", None)
    say("four")
    assert capfd.readouterr() == ("", "")


def test_a_warning_is_one_line_and_never_raises(monkeypatch, capsys):
    warn("two\n lines")
    assert capsys.readouterr().err == "warning: two lines\n"
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        warn("lost")


def test_without_standard_output_there_is_no_progress(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    make_progress_logger(Config()).log("evaluation", EVALUATION)
