"""A headless Chromium that a test clicks and types in, through its debugging protocol."""

import asyncio
import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
    # Nothing outside this machine may be needed.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WAIT = 60.0
_KEYS = {"Enter": 13, "Backspace": 8, "Tab": 9}


class Page:
    """A tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._ids = itertools.count(1)

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=WAIT)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Waits until a JavaScript expression is truthy."""
        for _ in range(int(WAIT / 0.05)):
            found = await self.value(expression)
            if found:
                return found
            await asyncio.sleep(0.05)
        body = await self.value("document.body.innerText")
        raise AssertionError(f"never: {expression}; the page says: {body}")

    async def click(self, selector: str, index: int = 0) -> None:
        """Presses the mouse in the middle of an element."""
        x, y = await self.value(
            f"(() => {{ const e = document.querySelectorAll({selector!r})[{index}];"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.ask(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def press(self, *keys: str) -> None:
        """Types keys, by their names in JavaScript."""
        for key in keys:
            code = _KEYS.get(key, ord(key[0].upper()))
            text = {"text": key} if len(key) == 1 else {}
            for kind in ("keyDown", "keyUp"):
                await self.ask(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    windowsVirtualKeyCode=code,
                    **(text if kind == "keyDown" else {}),
                )


@asynccontextmanager
async def browse(profile: Path, url: str) -> AsyncIterator[Page]:
    """Chromium with one page open; skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium on the PATH: apt-get install chromium")
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(int(WAIT / 0.1)):
            if port_file.exists() and port_file.read_text().count("\n"):
                break
            await asyncio.sleep(0.1)
        port = port_file.read_text().split("\n")[0]
        async with aiohttp.ClientSession() as session:
            tabs: list[dict[str, Any]] = []
            for _ in range(int(WAIT / 0.1)):
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    tabs = [tab for tab in await response.json() if tab["type"] == "page"]
                if tabs:
                    break
                await asyncio.sleep(0.1)  # it listens before its first tab is there
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"]) as socket:
                page = Page(socket)
                await page.ask("Page.enable")
                await page.ask("Page.navigate", url=url)
                await page.until(
                    "document.readyState == 'complete' && location.protocol != 'about:'"
                )
                yield page
    finally:
        process.terminate()
        process.wait(WAIT)
