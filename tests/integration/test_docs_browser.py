"""The documentation's site in a browser that has no network."""

import asyncio
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import browse
from tests.unit.test_docs_site import build


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    result = build(tmp_path / "site")
    assert result.returncode == 0, result.stderr
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_search_finds_pages_without_a_network(address: str, tmp_path: Path) -> None:
    async def search() -> None:
        async with browse(tmp_path / "profile", f"{address}/index.html?q=quarantine") as page:
            found = "document.querySelectorAll('.md-search-result__item a')"
            await page.until(f"{found}.length > 0")
            hrefs = await page.value(f"[...{found}].map(a => a.href).join(' ')")
            assert "failures.html" in hrefs

    asyncio.run(search())


HIDDEN = """[
    ...[...document.querySelectorAll('.md-content img')].filter(e => !e.naturalWidth),
    ...[...document.querySelectorAll('.language-text pre > code, .md-typeset__scrollwrap')]
        .filter(e => e.scrollWidth > e.clientWidth + 1),
].map(e => e.src || e.innerText.slice(0, 80)).join('\\n')"""


def test_no_picture_is_missing_and_no_text_is_cut_off(address: str, tmp_path: Path) -> None:
    async def look() -> None:
        async with browse(tmp_path / "profile", f"{address}/index.html") as page:
            await page.ask(
                "Emulation.setDeviceMetricsOverride",
                width=1280,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            for file in sorted((tmp_path / "site").glob("*.html")):
                await page.ask("Page.navigate", url=f"{address}/{file.name}")
                await page.until(
                    f"document.readyState == 'complete' && location.pathname == '/{file.name}'"
                )
                assert await page.value(HIDDEN) == "", file.name

    asyncio.run(look())
