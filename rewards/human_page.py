"""The page on which people judge groups, and the server of both page and rewards.

Whoever has the page's address, with the random token in it, may answer; nobody else is told
anything. The token also keeps other sites' pages from answering in a browser's name.
"""

import asyncio
import hmac
import io
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from PIL import Image

from protos.edge import (
    EdgeError,
    EdgeOptions,
    EdgeServer,
    is_loopback,
    join_address,
    stop_on_signals,
)
from rewards.human import RATINGS, AnswerError, HumanScorer, Mode, Waiting
from rewards.reward import Group
from rewards.service import handlers
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("human_page.html")
TRUTH = "truth"
MAX_BODY_BYTES = 64 * 1024
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}

Answerer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def page_application(task: Task, scorer: HumanScorer, token: str) -> web.Application:
    """The page and what it asks for; every request must carry the token."""

    @web.middleware
    async def guard(request: web.Request, handler: Answerer) -> web.StreamResponse:
        # A form or a picture of another site cannot send the header; reading needs the address.
        given = request.headers.get("X-Token", "")
        if request.method == "GET":
            given = given or request.query.get("token", "")
        if not hmac.compare_digest(given.encode(errors="replace"), token.encode()):
            response: web.StreamResponse = web.json_response(
                {"error": "open the address that the server printed: it holds a token"}, status=403
            )
        else:
            try:
                response = await handler(request)
            except AnswerError as error:
                response = web.json_response({"error": str(error)}, status=409)
        response.headers.update(_HEADERS)
        return response

    def counts() -> dict[str, int]:
        return {"waiting": scorer.waiting, "done": scorer.done}

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text=PAGE.read_text(), content_type="text/html")

    async def following(request: web.Request) -> web.StreamResponse:
        entry = scorer.next(request.query.get("viewer", ""))
        shown = None
        while entry is not None and shown is None:
            try:
                await _draw(task, scorer, entry)
                shown = {
                    "key": entry.key,
                    "example": entry.request.example_id,
                    "samples": len(entry.order),
                }
            except Exception as error:  # noqa: BLE001  # a broken example fails its own group
                scorer.give_up(entry, error)
                entry = scorer.next(request.query.get("viewer", ""))
        values = {"mode": scorer.mode, "ratings": RATINGS, "group": shown}
        return web.json_response(values | counts())

    async def progress(request: web.Request) -> web.StreamResponse:
        return web.json_response(counts())

    async def picture(request: web.Request) -> web.StreamResponse:
        entry = scorer.find(request.match_info["key"])
        await _draw(task, scorer, entry)
        pictures, name = entry.pictures, request.match_info["name"]
        if name not in pictures:
            raise AnswerError(f"this group has no picture {name!r}")
        return web.Response(body=pictures[name], content_type="image/png")

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            values = json.loads(await request.read())
            key = values["key"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AnswerError(f"not a JSON object with a key: {error!r}") from error
        scorer.answer(str(key), values)
        return web.json_response(counts())

    application = web.Application(middlewares=[guard], client_max_size=MAX_BODY_BYTES)
    application.add_routes(
        [
            web.get("/", page),
            web.get("/next", following),
            web.get("/progress", progress),
            web.get("/picture/{key}/{name}", picture),
            web.post("/answer", answer),
        ]
    )
    return application


async def _draw(task: Task, scorer: HumanScorer, entry: Waiting) -> None:
    """Makes the group's pictures, where they are not kept: by position, and the ground truth."""
    if not entry.pictures:
        scorer.keep_pictures(entry, await asyncio.to_thread(_pictures, task, entry))


def _pictures(task: Task, entry: Waiting) -> dict[str, bytes]:
    # Not kept: a group may wait for hours, and its arrays take megabytes.
    group = Group(task, entry.request)
    example, predictions = group.example, group.predictions
    drawn = {TRUTH: task.draw(example, None)}
    for position, sample in enumerate(entry.order):
        drawn[str(position)] = task.draw(example, predictions[sample])
    pictures = {}
    for name, pixels in drawn.items():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        pictures[name] = file.getvalue()
    return pictures


async def serve(
    task: Task,
    mode: Mode,
    answers: Path,
    options: EdgeOptions,
    page_host: str,
    page_port: int,
    on_start: Callable[[str, str], None],
) -> int:
    """Serves rewards and page until a signal; returns the exit code.

    Args:
      task: draws the samples.
      mode: how they are judged.
      answers: the file that keeps the answers.
      options: where reward workers ask.
      page_host, page_port: where the page is.
      on_start: told the address for workers and the page's URL.

    Raises:
      EdgeError: it cannot listen.
      AnswerError, OSError: the answers cannot be read.
    """
    stop = stop_on_signals()
    scorer = HumanScorer(task, mode, answers)
    token = secrets.token_urlsafe(24)
    # Without access logs: the addresses in them hold the token.
    runner = web.AppRunner(page_application(task, scorer, token), access_log=None)
    await runner.setup()
    server = EdgeServer(handlers(task, scorer), options)
    try:
        site = web.TCPSite(runner, page_host, page_port)
        try:
            await site.start()
        except OSError as error:
            raise EdgeError(
                f"cannot show the page at {join_address(page_host, page_port)}: "
                f"{error.strerror or error}"
            ) from error
        if not is_loopback(page_host):
            logger.warning("the page is served on %s without TLS: put a proxy before it", page_host)
        port = runner.addresses[0][1]
        shown = join_address(page_host, port)
        address = await server.start()
        logger.info("people judge (%s) for workers at %s", mode, address)
        on_start(address, f"http://{shown}/?token={token}")
        await stop.wait()
        logger.info("the server of people's rewards stops; %d groups wait", scorer.waiting)
    finally:
        # Those who wait ask the next server: there is nothing to wait for here.
        await server.stop(grace=0)
        await runner.cleanup()
        scorer.close()
    return 0
