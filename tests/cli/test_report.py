"""``jaxdqn report``: one page that contains everything it shows, about one run or several."""

import platform
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import pytest

from jaxdqn.cli import plot, report
from jaxdqn.config.config import from_dict, replace
from jaxdqn.config.presets import preset
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.report_setup import configuration
from jaxdqn.monitoring.run_files import read_run
from jaxdqn.run.machine import machine
from jaxdqn.run.runner import run
from tests.monitoring.test_reproduce import write_run
from tests.run.test_run import small
from tests.toys import noisy, quick_runs, shared_programs

GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with shared_programs(root / "xla"), quick_runs():
        for seed in (0, 1):
            config = small(seed=seed, solve_return=1e6, diagnostics=True)
            run(config, out=root / f"s{seed}", environment=noisy())
    return root


class Reader(HTMLParser):
    """Collect tags, addresses and text; fail on a tag that is not closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "xlink:href")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "xlink:href")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(runs, monkeypatch, arguments):
    monkeypatch.chdir(runs)
    assert report.main([*arguments, "--out", "page.html"]) == 0
    html = (runs / "page.html").read_text()
    return html, Reader(html)


@pytest.mark.parametrize("names", [["s0"], ["s0", "s1"]])
def test_a_report_contains_everything_that_it_shows(runs, monkeypatch, names):
    (runs / "episode.gif").write_bytes(GIF)
    html, page = page_of(runs, monkeypatch, [*names, "--video", "episode.gif"])
    assert page.addresses
    assert [one for one in page.addresses if not one.startswith(("data:", "#"))] == []
    assert not re.search(r"https?://(?!www\.w3\.org)", html)  # the name space of SVG
    assert "<script" not in html
    text = " ".join(page.text)
    summary = read_run(runs / "s0").summary
    assert f"{summary['best_eval_return_mean']:.2f}" in text
    assert f"{summary['env_steps_per_second']:,.0f}" in text
    for heading in ("Learning curves", "Results", "The policy", "Configuration", "Reproduce"):
        assert f"<h2>{heading}</h2>" in html
    assert html.count("<svg ") == 2
    # The environment is an object, which no command line can name.
    assert "s0 cannot be repeated from the command line: its environment is an object" in text
    assert "object of a Python program" in text
    here = summary["machine"]
    assert here["cpu"] in text
    assert f"{here['cores']} cores" in text
    # Options that differ from the defaults, with both values.
    assert "<tr><td>total_rows</td><td>400</td><td>200000</td></tr>" in html


def test_the_configuration_in_the_page_is_that_of_the_run(runs, monkeypatch):
    import base64
    import json

    _, page = page_of(runs, monkeypatch, ["s1", "--no-draw"])
    (data,) = [one for one in page.addresses if one.startswith("data:application/json")]
    values = json.loads(base64.b64decode(data.partition("base64,")[2]))
    assert from_dict(values) == read_run(runs / "s1").config


def test_the_own_parts_and_the_engine_of_every_run_are_in_the_page(tmp_path):
    network = {"network": {"reference": "own.py:net", "directory": "/home/user"}}
    first = write_run(tmp_path / "first", parts=network)
    ray = {"engine": "ray", "actors": 2}
    second = write_run(tmp_path / "second", parts={"replay": None}, engine=ray)
    html = configuration([read_run(first), read_run(second)])
    for cells in (
        "<td>first</td><td>network</td><td>own.py:net</td>",
        "<td>second</td><td>replay</td><td>object of a Python program</td>",
        "<td>second</td><td>engine</td><td>engine=&#x27;ray&#x27; with actors=2</td>",
    ):
        assert cells in html


def test_each_run_is_compared_with_its_own_preset_before_its_end(tmp_path):
    rainbow = replace(preset("rainbow"), learning_rate=0.5)
    runs = [
        write_run(tmp_path / "a", preset("cartpole"), preset="cartpole"),
        write_run(tmp_path / "b", rainbow, preset="rainbow"),
    ]
    html = configuration([read_run(run) for run in runs])
    assert "<p>As the preset cartpole.</p>" in html
    assert "<th>preset rainbow</th>" in html
    changed = html[: html.index("<details>")]
    assert re.findall(r"<tr><td>(\w+)</td><td>0.5</td>", changed) == ["learning_rate"]
    assert changed.count("<tr><td>") == 1


def test_a_run_records_its_preset_and_machine_at_its_start(tmp_path):
    seen = []

    def log(kind, record):
        if kind == "metrics":
            seen.append(read_run(tmp_path / "run"))

    logger = Logger(log, lambda: None)
    with quick_runs():
        out = {"out": tmp_path / "run", "environment": noisy()}
        run(small(), **out, preset="cartpole", loggers=[logger])
        run(small(total_rows=600), **out, resume=True, loggers=[logger])
    for read in (seen[0], seen[-1]):
        assert read.summary is None
        assert read.preset == "cartpole"
        assert read.identity["machine"] == machine()
        assert read.identity["versions"]["jaxdqn"]
    here = machine()
    assert here["cpu"]
    assert here["os"].startswith(platform.system())
    assert here["cores"] >= 1
    assert here["memory_bytes"] > 2**28


def test_an_environment_that_cannot_be_drawn_leaves_a_note(runs, monkeypatch):
    """The toy environment is not in the directory, so that its policy cannot be loaded."""
    html, _ = page_of(runs, monkeypatch, ["s0"])
    assert "No episode was drawn: " in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs=(): must be at least one run directory"),
        (["s0", "--out", "page.pdf"], "out='page.pdf': must end in .html"),
        (["s0", "--out", "no/page.html"], "out='no/page.html': must be in a directory that exists"),
        (["s0", "--video", "no.gif"], "video='no.gif': must be a .gif or .mp4 file that exists"),
        (["none"], "run='none': must be a run directory"),
    ],
)
def test_bad_input_is_one_line(runs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(runs)
    assert report.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_plot_draws_seeds_over_one_axis(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert plot.main(["s0", "s1", "--x", "seconds", "--out", "seeds.png"]) == 0
    assert Path("seeds.png").read_bytes().startswith(b"\x89PNG")
    assert plot.main(["s0", "--x", "minutes"]) == 2
    assert "minutes: must be" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(which("chromium") is None, reason="needs chromium")
def test_a_browser_without_a_network_shows_the_page_without_errors(runs, monkeypatch):
    page_of(runs, monkeypatch, ["s0", "s1", "--no-draw"])
    ended = subprocess.run(
        [which("chromium"), "--headless", "--no-sandbox", "--disable-gpu",
         "--window-size=1000,2500",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
         f"--screenshot={runs / 'page.png'}", (runs / "page.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in ended.stderr
    from PIL import Image

    picture = Image.open(runs / "page.png").convert("L")
    # Curves and text: a page of errors is almost white.
    assert sum(picture.histogram()[:128]) > 5_000


@pytest.mark.slow
def test_the_commands_run_in_a_process_of_their_own(tmp_path):
    def jaxdqn(*arguments):
        command = [sys.executable, "-m", "jaxdqn", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    jaxdqn("run", "cartpole", "--total-rows", "20000", "--out", "a")
    assert "report in" in jaxdqn("report", "a", "--out", "a.html")
    assert "data:image/gif;base64" in (tmp_path / "a.html").read_text()
    assert "greedy return" in jaxdqn("watch", "a")
