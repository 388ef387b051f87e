"""Reports in a real browser: every text is shown, pictures have a size, and nothing complains."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli_runs import run

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")

MODEL = "builtin:digits-mlp"
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr",
)  # fmt: skip
# What is laid out: visible text, sizes of pictures, labels outside of them, and the page's width.
MEASURE = """<script>
document.querySelectorAll("details").forEach(one => one.open = true);
const pictures = [...document.querySelectorAll("svg")].map(svg => {
  const frame = svg.getBoundingClientRect();
  const labels = [...svg.querySelectorAll("text")].map(one => one.getBoundingClientRect());
  const out = labels.filter(box => box.left < frame.left - 1 || box.right > frame.right + 1 ||
    box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
  return {width: frame.width, height: frame.height, labels: labels.length, outside: out.length};
});
const told = {text: document.body.innerText, pictures,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth};
document.documentElement.setAttribute("data-told", JSON.stringify(told));
</script></body>"""


def opened(page: Path, profile: Path, *more: str) -> tuple[str, list[str]]:
    """Open a page; return its document as it then is, and what the console said."""
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--dump-dom", *more, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measured(page: Path, profile: Path, *more: str) -> dict:
    """Return what a copy of the page with a script in it measures."""
    source = page.read_text(encoding="utf-8")
    assert source.count("</body>") == 1
    copy = page.with_name(f"measured-{page.name}")
    copy.write_text(source.replace("</body>", MEASURE), encoding="utf-8")
    found = re.search(r'data-told="([^"]*)"', opened(copy, profile, *more)[0])
    assert found is not None
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = ("compress", MODEL, "--data", "digits", "--calibration-samples", 64)
        run(*given, "--method", "gpfq", "--bits", 4, "-o", "a.fewbits", "--report", "plain.html")
        run(*given, "--target-bytes", "4KB", "-o", "b.fewbits", "--report", "search.html")
        run("sensitivity", MODEL, "--data", "digits", "--calibration-samples", 64,
            "--method", "nearest", "--report", "sensitivity.html")  # fmt: skip
    return folder


@pytest.mark.parametrize("width", [1200, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["plain", "search", "sensitivity"])
def test_a_report_is_shown_whole(pages, tmp_path, name, width):
    page = pages / f"{name}.html"
    _, said = opened(page, tmp_path / "profile")
    assert said == []
    told = measured(page, tmp_path / "profile", f"--window-size={width},800")
    source = page.read_text(encoding="utf-8")
    headings = [html.unescape(one) for one in re.findall(r"<h[12]>(.*?)</h[12]>", source)]
    assert headings
    shown = " ".join(told["text"].split())
    for heading in headings:
        assert " ".join(heading.split()) in shown
    assert told["pictures"]
    for picture in told["pictures"]:
        assert min(picture["width"], picture["height"]) > 20
        assert picture["labels"] > 0
        assert picture["outside"] == 0
    assert told["wide"] <= 0 or width < 1200
