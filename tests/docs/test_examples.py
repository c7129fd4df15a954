"""The programs of docs/examples run as written and give what their page shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "examples"


def read_summary(run: Path):
    return json.loads((run / "summary.json").read_text())


def picture(file: Path):
    """Return the size and the number of frames of a picture."""
    with Image.open(file) as image:
        return image.size, getattr(image, "n_frames", 1)


def check_train_and_watch(folder, output):
    assert read_summary(folder / "runs/watched")["held"]
    assert output.count(" steps  return ") >= 10
    assert picture(folder / "cartpole.gif")[1] > 100


def check_own_environment(folder, output):
    # By value iteration the best policy returns 0.75, and steering straight -0.11.
    assert read_summary(folder / "runs/river")["eval_return_mean"] > 0.65
    assert picture(folder / "river.gif")[1] == 13


def check_sweep_for_a_paper(folder, output):
    assert (folder / "sweep.pdf").read_bytes().startswith(b"%PDF")
    assert picture(folder / "sweep.png")[0] == (680, 460)
    assert output.count("final returns") == 4


def check_population_of_64(folder, output):
    assert len(read_summary(folder / "runs/population")["learners"]) == 64
    assert len([line for line in output.splitlines() if line.strip()[:3] == "0.0"]) == 8


def check_resume_on_a_cluster(folder, output):
    summary = read_summary(folder / "runs/preempted")
    assert not summary["interrupted"]
    assert summary["rows"] >= 600_000
    assert output.count("exit code 0") >= 3
    assert "resumed" in output


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def test_every_example_has_a_check_and_is_shown():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files == set(CHECKS)
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert all(f":::{{literalinclude}} {name}.py" in page for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_an_example_runs_as_written(name, tmp_path):
    ended = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    CHECKS[name](tmp_path, ended.stdout)
