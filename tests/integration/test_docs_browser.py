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
