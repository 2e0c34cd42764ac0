"""The documentation holds together: links, navigation, the generated page of the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import DOCS, ROOT

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^(```|~~~).*?^\1", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]*`", "code", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown's `toc` makes them."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+?)(?: \{.*\})?$", prose, flags=re.MULTILINE)
    slugs = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", slug) for slug in slugs}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_is_in_the_navigation_once() -> None:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)  # type: ignore[attr-defined]
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), loader)
    listed = re.findall(r"[\w/.-]+\.md", str(site["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def test_the_page_of_the_command_line_is_what_help_says() -> None:
    script = [sys.executable, str(DOCS / "generate_cli.py")]
    generated = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert generated == page, "run python docs/generate_cli.py > docs/reference/cli.md"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
