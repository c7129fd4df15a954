"""The site builds without a warning, works without other hosts, and shows in a browser."""

import functools
import html.parser
import http.server
import re
import shutil
import subprocess
import sys
import threading

import pytest
from PIL import Image

import jaxdqn
from tests.docs.pages import ROOT
from tests.docs.test_reference import public_names

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as ``make docs`` does."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = re.search(r"-m (sphinx .*?)-d", (ROOT / "Makefile").read_text(), re.DOTALL)[1]
    flags = command.replace("\\\n", " ").split()
    ended = subprocess.run(
        [sys.executable, "-m", *flags, "-d", folder / "doctrees", ROOT / "docs", folder / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder / "html"


def test_every_public_name_is_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    found = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    assert {name for name, _ in public_names()} - found == set()
    assert {f"jaxdqn.{name}" for name in jaxdqn.__all__} - found == set()


class _Loaded(html.parser.HTMLParser):
    """Addresses that a browser loads with a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        name = {"link": "href"}.get(tag, "src")
        loads = tag in ("script", "img", "iframe", "video", "source", "link")
        if loads and values.get(name) and values.get("rel") not in ("next", "prev", "search"):
            self.found.append(values[name])


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.found
        assert [address for address in loaded.found if re.match(r"(https?:)?//", address)] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*['\"]?https?:", sheet.read_text()) == []


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def show(address, folder, size="1400,1200"):
    """Open a page in Chromium; return the picture and the messages of its console."""
    ended = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size}",
         f"--screenshot={folder / 'page.png'}", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )  # fmt: skip
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    with Image.open(folder / "page.png") as image:
        return image.convert("L"), console


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    "page", ["index.html", "quickstart.html", "api/index.html", "examples/index.html"]
)
@pytest.mark.parametrize("way", ["server", "file"])
def test_a_page_shows_without_an_error_in_the_console(page, way, site, address, tmp_path):
    where = f"{address}/{page}" if way == "server" else f"file://{site / page}"
    picture, console = show(where, tmp_path)
    assert console == []
    shades = picture.histogram()
    assert sum(shades[:128]) > 5_000, "there is dark text on the page"
    assert sum(shades[200:]) > 500_000, "on a light ground"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_an_error_in_the_console_is_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>text</p><script>undefined_name.call()</script>")
    _, console = show(page.as_uri(), tmp_path)
    assert len(console) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_search_finds_a_function_without_a_server(site, tmp_path):
    ended = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         "--virtual-time-budget=10000", f"file://{site / 'search.html'}?q=make_trainer"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )  # fmt: skip
    results = re.findall(r'<li[^>]*class="kind-[^"]*"[^>]*>', ended.stdout)
    assert results, ended.stdout[-2000:]
