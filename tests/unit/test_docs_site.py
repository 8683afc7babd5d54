"""The documentation builds as a site, strictly, and needs no network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# What a browser fetches by itself when it opens a page; a link that one may click is not.
_FETCHED = re.compile(r'<(?:script|img|iframe)[^>]+src="(\w+:)?//|<link[^>]+href="(\w+:)?//[^>]*>')


def build(directory: Path, config: Path = REPOSITORY / "mkdocs.yml"):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", directory],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    result = build(directory)
    assert result.returncode == 0, result.stderr
    return directory


def test_every_page_is_built_and_no_link_or_anchor_is_broken(site):
    pages = {page.stem for page in (REPOSITORY / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}


def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = [
            found[0]
            for found in _FETCHED.finditer(page.read_text())
            if 'rel="canonical"' not in found[0]
        ]
        assert not fetched, (page, fetched)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\((https?:)?//|@import", style.read_text()), style


def test_code_in_lists_is_indented_as_markdown_wants_it():
    """By 4 spaces: with fewer the list ends there, and begins again at 1."""
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert not re.findall(r"^ {1,3}```", page.read_text(), re.MULTILINE), page


def test_the_quick_start_shows_the_readmes_commands_and_output(site):
    page = (site / "quick_start.html").read_text()
    assert "make demo" in page
    assert "runs/demo/report.html" in page


def test_a_link_to_an_anchor_that_is_not_there_fails_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    docs.joinpath("index.md").write_text("# Home\n\n[gone](#gone)\n")
    config = (REPOSITORY / "mkdocs.yml").read_text().split("\nnav:")[0]
    tmp_path.joinpath("mkdocs.yml").write_text(config)
    result = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert result.returncode != 0
    assert "#gone" in result.stdout + result.stderr
