"""The report page: written by the command line, and rendered by a browser at phone and desktop width."""

import html
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from continual.reports.html import Section, Table, page, stream_page
from continual.reports.report import stream_report
from registry import Registry, upgrade
from tests.helpers.cli import CliRunner
from tests.helpers.paths import DOCS, FIXTURES

WIDTHS = (360, 1280)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
ASKED = ("--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=3000")
LONG = "a-very-long-name-without-a-space-" * 12
# Measures every page in its frame, and writes the result into the document that the browser prints.
MEASURE = """
<script>
addEventListener("load", () => {
const seen = [...document.querySelectorAll("iframe")].map(frame => {
  const inner = frame.contentDocument, root = inner.documentElement, style = frame.contentWindow.getComputedStyle;
  const boxes = [...inner.querySelectorAll(".box")];
  return {
    name: frame.title, width: frame.contentWindow.innerWidth, needed: root.scrollWidth,
    paper: style(inner.body).backgroundColor, sections: inner.querySelectorAll("section").length,
    scrolling: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
    reached: boxes.every(box => { box.focus(); return inner.activeElement === box; }),
  };
});
document.body.innerHTML = "<pre id=seen></pre>";
document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a stream: a warm start, a failed task, and two unlearned ones."""
    with tarfile.open(FIXTURES / "home-0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    upgrade(f"sqlite:///{tmp_path}/home/registry.db")
    return tmp_path / "home"


def test_report_writes_a_page(cli: CliRunner, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("before")
    result = cli("report", "core", "--json", "--html", str(file))
    assert result.code == 0, result.err
    assert result.json == cli("report", "core", "--json").json
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert f"<dd>{result.json['oracle']['acc']:.3f}</dd>" in text
    for unfinished in result.json["unfinished"]:
        assert f"<bdi>{unfinished['task']}</bdi>" in text
    assert "<title>animals@1</title>" in text, "in the graph"
    assert not list(tmp_path.glob(".*.draft"))
    plain = cli("report", "--html", str(file))
    assert "Measures" in plain.out
    assert str(file) in plain.err.replace("\n", "")


def test_an_unwritable_file_is_refused_before_any_output(cli: CliRunner, home: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "none" / "report.html", tmp_path):
        result = cli("report", "core", "--json", "--html", str(place))
        assert (result.code, result.out) == (2, "")
        assert "InputError" in result.err
        assert "Give" in result.err
    assert cli("report", "none", "--html", str(tmp_path / "report.html")).code == 2
    assert not (tmp_path / "report.html").exists()


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "how-to" / "reports.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert "1.48%" in (tmp_path / "study.html").read_text(encoding="utf-8")


def browsed(folder: Path, pages: dict[str, str], *, dark: bool) -> tuple[dict[str, dict[str, Any]], str]:
    """Return what each page measures at each width in a browser, and the browser's log."""
    assert BROWSER
    frames = [
        f'<iframe title="{name} {width}" width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in WIDTHS
    ]
    wrapper = folder / "wrapper.html"
    body = f"<style>iframe {{ border: 0 }}</style>{''.join(frames)}{MEASURE}"
    wrapper.write_text(f"<!doctype html><meta charset=utf-8><title>w</title><body>{body}", encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    words = [BROWSER, *QUIET, *ASKED, scheme, f"--user-data-dir={folder / 'profile'}", wrapper.as_uri()]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    completed = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=True)
    (output,) = re.findall(r'<pre id="seen">(.*?)</pre>', completed.stdout, flags=re.DOTALL)
    return {frame["name"]: frame for frame in json.loads(html.unescape(output))}, completed.stderr


def a_figure() -> Figure:
    figure = Figure(figsize=(9, 4))
    figure.add_subplot().plot([1, 2, 3], label=LONG)
    return figure


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_whole_page_at_any_width(home: Path, tmp_path: Path, dark: bool) -> None:
    with Registry.open(f"sqlite:///{home}/registry.db", f"{home}/blobs") as registry:
        learned = stream_page(registry, stream_report(registry, "core"))
    wide = Table(tuple(f"column {i}" for i in range(30)), ((LONG, *range(29)),))
    sections = [Section(LONG, LONG, table=wide, caption=LONG), Section("Figure", figure=a_figure(), caption=LONG)]
    outside = '<!doctype html><body><div style="width: 2000px">too wide</div><script>missing()</script>'
    frames, console = browsed(tmp_path, {"learned": learned, "long": page(LONG, sections, summary=LONG)}, dark=dark)
    assert frames.keys() == {f"{name} {width}" for name in ("learned", "long") for width in WIDTHS}
    for name, frame in frames.items():
        assert frame["width"] == int(name.split()[-1])
        assert frame["needed"] <= frame["width"], f"{name} scrolls sideways"
        assert frame["sections"]
        assert frame["reached"], "every box that may scroll has the focus of the keyboard"
        assert frame["paper"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert frames["long 360"]["scrolling"] == 2, "the table and the figure, each in its own box"
    assert "CONSOLE" not in console
    if dark:  # once: check that the measurement detects a bad page
        bad, complained = browsed(tmp_path, {"bad": outside}, dark=dark)
        assert bad["bad 360"]["needed"] > 360
        assert "CONSOLE" in complained
