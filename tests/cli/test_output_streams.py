"""Commands whose standard output is closed, full, or ASCII only."""

import json
import os
import subprocess
import sys

import pytest

from jaxdqn.cli.flags import run_command
from tests.cli.test_cli import ROOT, SMALL

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")

RUNS = """
import os, sys
from jaxdqn.cli.run import main
out, argv = sys.argv[1], sys.argv[2:]

def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer

def run(name, number):
    if number is None:
        os.close(1)
        sys.stdout = None
    else:
        os.dup2(number, 1)
        sys.stdout = open(1, "w", closefd=False, encoding="ascii")
    print(name, main([*argv, "--out", f"{out}/{name}"]), file=sys.stderr)
    sys.stdout.flush()

run("pipe", closed_pipe())
run("full", os.open("/dev/full", os.O_WRONLY))
run("ascii", os.open(f"{out}/ascii.txt", os.O_WRONLY | os.O_CREAT))
run("closed", None)
"""


@pytest.mark.slow
def test_a_run_ends_well_whatever_becomes_of_its_output(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", RUNS, tmp_path, *SMALL, "--total-rows", "600"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stderr.splitlines()
    names = ["pipe", "full", "ascii", "closed"]
    assert [line for line in lines if not line.startswith("warning: ")] == [
        f"{name} 0" for name in names
    ]
    assert sum("progress display failed: BrokenPipeError" in line for line in lines) == 1
    assert sum("No space left on device" in line for line in lines) == 1
    for name in names:
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["interrupted"] is False
        assert any((tmp_path / name / "checkpoints").iterdir())
    text = (tmp_path / "ascii.txt").read_text(encoding="ascii")
    assert " +- " in text
    assert "summary in " in text


def test_a_command_whose_result_cannot_be_printed_fails_in_one_line(monkeypatch, capfd):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(lambda argv: print("result"), []) == 1
    assert capfd.readouterr().err == "error: standard output: No space left on device\n"
