"""People's rewards end to end: groups of a worker, the page in Chromium, and the answers."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config import RunConfig
from protos.reward import ScoreRequest
from protos.trajectory import Abstained, Outcome, Scored
from rewards.judge import start
from rewards.remote import RemoteReward
from rewards.reward import Group
from tests.chromium import Page, browse
from tests.integration.test_commands import environment, write_config
from vision.tasks.registry import build_task

WAIT = 240.0


@contextmanager
def people(directory: Path, values: dict[str, Any], *arguments: str) -> Iterator[tuple[str, str]]:
    """`rewardtune serve human`: the address for workers and the page's."""
    config = write_config(directory, values, runs=str(directory))
    command = [sys.executable, "-m", "deploy.cli", "serve", "human", str(config)]
    server = subprocess.Popen(
        [*command, "--port", "0", "--page-port", "0", *arguments],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        said = "".join(server.stdout.readline() for _ in range(3))
        address, url = re.search(r"rewards at (\S+)", said), re.search(r"open (\S+)", said)
        if address is None or url is None:
            raise AssertionError(said + server.communicate(timeout=WAIT)[1])
        yield address[1], url[1]
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=WAIT)
        assert server.returncode == 0, errors
        assert url[1].partition("token=")[2] not in errors
    finally:
        if server.poll() is None:
            server.kill()


def groups(task: Any, samples: int, count: int) -> list[Group]:
    """Groups of the ground truth, of which every further sample misses one token more."""
    made = []
    for example_id in task.example_ids("train")[:count]:
        example = task.load("train", example_id, None)
        tokens = np.stack([task.target_tokens(example, 0)] * samples)
        for sample in range(samples):
            tokens[sample, 6 * (sample + 1) :] = 0
        logprobs = np.full(tokens.shape, -0.1, np.float32)
        made.append(Group(task, ScoreRequest("train", example_id, 3, tokens, logprobs)))
    return made


async def result(answer: Future[tuple[Outcome, ...]]) -> list[float | None]:
    outcomes = await asyncio.wait_for(asyncio.wrap_future(answer), WAIT)
    return [one.reward if isinstance(one, Scored) else None for one in outcomes]


async def is_shown(page: Page, example_id: str) -> None:
    await page.until(f"document.getElementById('message').innerText.includes('{example_id}')")
    await page.until("[...document.images].every(i => i.complete && i.naturalWidth >= 288)")


async def has_progress(page: Page, text: str) -> None:
    await page.until(f"document.getElementById('progress').innerText == '{text}'")


def test_samples_are_put_in_order_with_mouse_and_keys(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    task = build_task(RunConfig.model_validate(tiny_values).task)
    with people(tmp_path, tiny_values) as (address, url):
        away = RemoteReward(task, address, deadline_seconds=WAIT)
        waiting = groups(task, 3, 4)

        async def judge(page: Page) -> None:
            await page.until("document.body.innerText.includes('Nothing waits')")
            examples = [group.request.example_id for group in waiting]
            answers = []
            for count, group in enumerate(waiting, 1):  # one after the other: they are in order
                answers.append(start(away, group))
                await has_progress(page, f"{count} waiting, 0 done")
            await is_shown(page, examples[0])
            # The third on the page is best, then the first; the second shares no place with them.
            await page.click(".pick", 2)
            await page.click(".pick", 0)
            places = await page.value(
                "[...document.querySelectorAll('.place')].map(p => p.innerText)"
            )
            assert places == ["place 2", "", "place 1"]
            await page.click("#send")
            await is_shown(page, examples[1])
            await has_progress(page, "3 waiting, 1 done")
            first = await result(answers[0])
            assert sorted(first) == [0.0, 0.5, 1.0]

            # Keys: a place is taken back, and Enter gives the rest the last place.
            await page.press("1", "Backspace", "2", "Enter")
            await is_shown(page, examples[2])
            second = await result(answers[1])
            assert sorted(second) == [0.25, 0.25, 1.0]

            await page.click(".unjudged", 1)
            await page.press("1", "g")
            assert await page.value("!document.getElementById('truth').hidden")
            await page.press("Enter")
            third = await result(answers[2])
            assert sorted(reward for reward in third if reward is not None) == [0.0, 1.0]
            assert third.count(None) == 1

            await is_shown(page, examples[3])
            await page.press("s")
            await page.until("document.body.innerText.includes('Nothing waits')")
            await has_progress(page, "0 waiting, 4 done")
            outcomes = await asyncio.wrap_future(answers[3])
            assert outcomes == (Abstained("skipped"),) * 3

        drive(tmp_path, url, judge)
        away.close()
    # The answers stand in the samples' order, whatever the order on the page was.
    lines = (tmp_path / "tiny_answers.jsonl").read_text().splitlines()
    assert len(lines) == 4


def test_samples_are_rated_with_mouse_and_keys(tmp_path: Path, tiny_values: dict[str, Any]) -> None:
    task = build_task(RunConfig.model_validate(tiny_values).task)
    with people(tmp_path, tiny_values, "--mode", "rate") as (address, url):
        away = RemoteReward(task, address, deadline_seconds=WAIT)
        (group,) = groups(task, 2, 1)

        async def judge(page: Page) -> None:
            answer = start(away, group)
            await is_shown(page, group.request.example_id)
            assert await page.value("document.getElementById('send').disabled")
            await page.press("2", "Enter")  # Enter sends nothing before all are rated
            assert not answer.done()
            await page.click(".sample:nth-child(2) .rating", 4)
            await page.press("Enter")
            assert sorted(await result(answer)) == [0.25, 1.0]

        drive(tmp_path, url, judge)
        away.close()


def test_without_the_token_the_page_shows_nothing(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    with people(tmp_path, tiny_values) as (_, url):

        async def look(page: Page) -> None:
            await page.until("document.body.innerText.includes('it holds a token')")
            assert await page.value("document.images.length") == 0

        drive(tmp_path, url.partition("?")[0], look)


def drive(directory: Path, url: str, body: Any) -> None:
    async def main() -> None:
        async with browse(directory / "profile", url) as page:
            await body(page)

    asyncio.run(asyncio.wait_for(main(), WAIT))


def test_unknown_mode_ends_with_one_line(tmp_path: Path, tiny_values: dict[str, Any]) -> None:
    config = write_config(tmp_path, tiny_values, runs=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "serve", "human", str(config), "--mode", "guess"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 1
    assert "--mode is 'guess'; it must be compare or rate" in done.stderr
    assert "Traceback" not in done.stderr
