"""Rewards by people: what answers mean, that they are kept, and who may give them."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from protos.trajectory import Abstained, FailureKind, Scored
from rewards import human
from rewards.human import AnswerError, HumanScorer, outcomes_of
from rewards.human_page import page_application
from rewards.reward import Group
from tests.remote_rewards import StubTask, request

TOKEN = "the-token-of-the-page"
HEADERS = {"X-Token": TOKEN}
UNJUDGED = Abstained("not judged")


def rewards(mode, samples, answer):
    return [
        outcome.reward if isinstance(outcome, Scored) else None
        for outcome in outcomes_of(mode, samples, answer)
    ]


def test_a_rank_becomes_the_share_of_comparisons_that_the_sample_won():
    assert rewards("compare", 2, {"ranks": [2, 1]}) == [0.0, 1.0]
    assert rewards("compare", 4, {"ranks": [1, 2, 3, 4]}) == [1.0, 2 / 3, 1 / 3, 0.0]
    assert rewards("compare", 3, {"ranks": [1, 2, 2]}) == [1.0, 0.25, 0.25]
    assert rewards("compare", 3, {"ranks": [1, 1, 1]}) == [0.5, 0.5, 0.5]


def test_samples_that_were_not_judged_abstain_and_are_compared_with_nothing():
    assert rewards("compare", 3, {"ranks": [None, 1, 2]}) == [None, 1.0, 0.0]
    assert outcomes_of("compare", 2, {"ranks": [None, 1]}) == (UNJUDGED, UNJUDGED)
    assert rewards("rate", 2, {"ratings": [None, 5]}) == [None, 1.0]
    assert outcomes_of("rate", 2, {"skip": True}) == (Abstained("skipped"),) * 2


def test_ratings_become_numbers_from_0_to_1():
    assert rewards("rate", 5, {"ratings": [1, 2, 3, 4, 5]}) == [0.0, 0.25, 0.5, 0.75, 1.0]


@given(st.lists(st.none() | st.integers(1, 6), min_size=6, max_size=6))
def test_rewards_of_comparisons_average_one_half_and_follow_the_ranks(ranks):
    got = rewards("compare", 6, {"ranks": ranks})
    judged = [(rank, reward) for rank, reward in zip(ranks, got, strict=True) if rank is not None]
    if len(judged) < 2:
        assert got == [None] * 6
        return
    assert sum(reward for _, reward in judged) == pytest.approx(len(judged) / 2)
    for rank, reward in judged:
        assert all((rank < other) == (reward > theirs) for other, theirs in judged)


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("compare", {}),
        ("compare", {"ranks": [1]}),
        ("compare", {"ranks": [1, 3]}),
        ("compare", {"ranks": [0, 1]}),
        ("compare", {"ranks": [1, True]}),
        ("compare", {"ranks": [1, 1.5]}),
        ("compare", {"ranks": "12"}),
        ("compare", {"ratings": [1, 2]}),
        ("compare", {"skip": "yes"}),
        ("rate", {"ratings": [1, 6]}),
        ("rate", {"ranks": [1, 2]}),
    ],
)
def test_an_answer_that_is_none_is_refused(mode, answer):
    with pytest.raises(AnswerError):
        outcomes_of(mode, 2, answer)


def run(body: Callable[..., Coroutine[Any, Any, None]], path: Path, **options: Any) -> None:
    async def main() -> None:
        task = options.get("task", StubTask())
        scorer = HumanScorer(task, options.get("mode", "compare"), path)
        application = page_application(task, scorer, TOKEN)
        try:
            async with TestClient(TestServer(application)) as client:
                await asyncio.wait_for(body(scorer, client), 30)
        finally:
            scorer.close()

    asyncio.run(main())


async def ask(scorer, *arguments):
    """A call as a reward worker makes it, once the group waits."""
    call = asyncio.create_task(scorer.score(request(*arguments)))
    await asyncio.sleep(0)
    return call


async def following(client, viewer="me"):
    response = await client.get(f"/next?viewer={viewer}", headers=HEADERS)
    assert response.status == 200
    return await response.json()


async def answer(client, key, **values):
    return await client.post("/answer", json={"key": key, **values}, headers=HEADERS)


def test_an_answer_reaches_every_caller_in_the_order_of_the_samples(tmp_path):
    async def body(scorer, client):
        first, second = await ask(scorer, 1, 4), await ask(scorer, 1, 4)
        shown = (await following(client))["group"]
        assert (shown["example"], shown["samples"]) == ("1", 4)
        order = scorer.find(shown["key"]).order
        assert sorted(order) == [0, 1, 2, 3]
        # The person likes samples in their own order: 0, 1, 2, 3.
        response = await answer(client, shown["key"], ranks=[sample + 1 for sample in order])
        assert await response.json() == {"waiting": 0, "done": 1}
        for call in (first, second):
            outcomes = (await call).outcomes
            assert [one.reward for one in outcomes] == [1.0, 2 / 3, 1 / 3, 0.0]

    run(body, tmp_path / "answers.jsonl")


def test_pictures_are_the_tasks_drawings_in_the_order_of_the_page(tmp_path):
    import io

    import numpy as np
    from PIL import Image

    async def body(scorer, client):
        call = await ask(scorer, 0, 3)
        key = (await following(client))["group"]["key"]
        entry = scorer.find(key)
        for position, sample in enumerate(entry.order):
            response = await client.get(f"/picture/{key}/{position}?token={TOKEN}")
            pixels = np.asarray(Image.open(io.BytesIO(await response.read())))
            assert (
                pixels[0, 0, 0] == 20 * Group(StubTask(), entry.request).predictions[sample] % 256
            )
        assert (await client.get(f"/picture/{key}/truth?token={TOKEN}")).status == 200
        assert (await client.get(f"/picture/{key}/3?token={TOKEN}")).status == 409
        call.cancel()

    run(body, tmp_path / "answers.jsonl")


def test_answers_outlive_the_server_and_nobody_is_asked_twice(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"

    async def judge(scorer, client):
        call = await ask(scorer, 2)
        await answer(client, (await following(client))["group"]["key"], skip=True)
        assert (await call).outcomes == (Abstained("skipped"),) * 2

    async def ask_again(scorer, client):
        assert (await scorer.score(request(2))).outcomes == (Abstained("skipped"),) * 2
        assert await following(client) == {
            "mode": "compare",
            "ratings": 5,
            "waiting": 0,
            "done": 1,
            "group": None,
        }
        other = await ask(scorer, 2, 3)  # other samples of the example are another question
        assert (await following(client))["group"] is not None
        other.cancel()

    run(judge, path)
    run(ask_again, path)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["example_id"] == "2"


def test_a_file_that_holds_no_answers_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"key": "00"}\n')
    with pytest.raises(AnswerError, match=r"answers.jsonl, line 1 is no answer"):
        HumanScorer(StubTask(), "rate", tmp_path / "answers.jsonl")


def test_an_answer_that_a_crash_cut_short_never_counted(tmp_path, caplog):
    path = tmp_path / "answers.jsonl"

    async def judge(scorer, client):
        call = await ask(scorer, 2)
        await answer(client, (await following(client))["group"]["key"], skip=True)
        assert (await call).outcomes == (Abstained("skipped"),) * 2

    run(judge, path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    scorer = HumanScorer(StubTask(), "compare", path)
    assert scorer.done == 1
    scorer.close()
    assert path.read_bytes() == whole
    assert "cut short" in caplog.text


def test_an_answer_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    async def body(scorer, client):
        call = await ask(scorer, 1)
        key = (await following(client))["group"]["key"]

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            assert (await answer(client, key, ranks=[1, 2])).status == 500
        assert (tmp_path / "answers.jsonl").read_bytes() == b""
        assert not call.done()
        assert (await answer(client, key, ranks=[1, 2])).status == 200
        assert len((await call).outcomes) == 2

    async def look(scorer, client):
        assert scorer.done == 1

    run(body, tmp_path / "answers.jsonl")
    run(look, tmp_path / "answers.jsonl")


def test_two_servers_do_not_share_a_file_of_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = HumanScorer(StubTask(), "compare", path)
    with pytest.raises(
        AnswerError, match=r"answers\.jsonl is written by another server.*--answers"
    ):
        HumanScorer(StubTask(), "compare", path)
    first.close()
    path.write_text("no answer\n")
    for _ in range(2):  # one that could not start holds nothing
        with pytest.raises(AnswerError, match="line 1 is no answer"):
            HumanScorer(StubTask(), "compare", path)


def test_pictures_beyond_the_limit_are_drawn_anew_where_they_are_wanted(tmp_path, monkeypatch):
    async def body(scorer, client):
        calls = [await ask(scorer, number) for number in range(3)]
        keys = [(await following(client, viewer))["group"]["key"] for viewer in "abc"]
        entries = [scorer.find(key) for key in keys]
        sizes = [entry.picture_bytes for entry in entries]
        assert all(sizes)
        monkeypatch.setattr(human, "KEPT_PICTURE_BYTES", sum(sizes) - 1)
        scorer.keep_pictures(entries[2], entries[2].pictures)
        assert [bool(entry.pictures) for entry in entries] == [False, True, True]
        url = f"/picture/{keys[0]}/0?token={TOKEN}"
        assert (await client.get(url)).content_type == "image/png"
        assert sum(entry.picture_bytes for entry in entries) <= human.KEPT_PICTURE_BYTES
        for call in calls:
            call.cancel()

    run(body, tmp_path / "answers.jsonl")


def test_groups_that_nobody_waits_for_are_kept_up_to_so_many_bytes(tmp_path, monkeypatch):
    async def body(scorer, client):
        calls = [await ask(scorer, number) for number in range(4)]
        each = request().tokens.nbytes + request().logprobs.nbytes
        monkeypatch.setattr(human, "KEPT_ABANDONED_BYTES", 2 * each)
        for call in calls[:3]:
            call.cancel()
        await asyncio.gather(*calls[:3], return_exceptions=True)
        kept = [entry.request.example_id for entry in scorer._waiting.values()]
        assert kept == ["1", "2", "3"]  # the oldest is forgotten; one is waited for
        calls[3].cancel()

    run(body, tmp_path / "answers.jsonl")


def test_refused_answers_change_nothing(tmp_path):
    async def body(scorer, client):
        call = await ask(scorer, 1)
        key = (await following(client))["group"]["key"]
        for values in ({"ranks": [1]}, {"ranks": [[1], 2]}, {"ratings": [1, 1]}, {}):
            assert (await answer(client, key, **values)).status == 409
        assert (await answer(client, "ff", ranks=[1, 2])).status == 409
        for hostile in (b"\xff", b"[]", b"7", b'{"key"', b"[" * 50_000):
            response = await client.post("/answer", data=hostile, headers=HEADERS)
            assert response.status == 409
        response = await client.post("/answer", data=b" " * 100_000, headers=HEADERS)
        assert response.status == 413
        assert not call.done()
        assert (tmp_path / "answers.jsonl").read_text() == ""
        assert (await answer(client, key, ranks=[1, 2])).status == 200
        assert (await answer(client, key, ranks=[2, 1])).status == 409  # one answer, the first
        assert sorted(one.reward for one in (await call).outcomes) == [0.0, 1.0]

    run(body, tmp_path / "answers.jsonl")


def test_nothing_is_told_or_taken_without_the_token(tmp_path):
    async def body(scorer, client):
        call = await ask(scorer, 1)
        key = (await following(client))["group"]["key"]
        routes = ["/", "/next", "/progress", f"/picture/{key}/0", "/nothing-here"]
        for route in routes:
            for headers in ({}, {"X-Token": "guess"}, {"X-Token": "\udcff"}):
                response = await client.get(route, headers=headers)
                assert response.status == 403, route
                assert key not in await response.text()
            assert (await client.get(f"{route}?token=guess")).status == 403
        body = json.dumps({"key": key, "ranks": [1, 2]})
        # As a form or a script of another site could send it, which knows no header.
        for target in ("/answer", f"/answer?token={TOKEN}"):
            for kind in ("text/plain", "application/x-www-form-urlencoded"):
                response = await client.post(target, data=body, headers={"Content-Type": kind})
                assert response.status == 403
        assert not call.done()
        response = await client.get(f"/?token={TOKEN}")
        assert response.status == 200
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Referrer-Policy"] == "no-referrer"
        call.cancel()

    run(body, tmp_path / "answers.jsonl")


def test_a_group_is_offered_to_one_person_at_a_time_and_the_oldest_first(tmp_path):
    async def body(scorer, client):
        calls = [await ask(scorer, number) for number in range(3)]
        assert (await following(client, "a"))["group"]["example"] == "0"
        assert (await following(client, "b"))["group"]["example"] == "1"
        assert (await following(client, "a"))["group"]["example"] == "0"
        assert (await following(client, "c"))["group"]["example"] == "2"
        assert (await following(client, "d"))["group"] is None
        for call in calls:
            call.cancel()

    run(body, tmp_path / "answers.jsonl")


def test_a_group_that_nobody_waits_for_is_not_offered_but_its_answer_counts(tmp_path):
    async def body(scorer, client):
        call = await ask(scorer, 1)
        key = (await following(client))["group"]["key"]
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (scorer.waiting, (await following(client))["group"]) == (0, None)
        assert (await answer(client, key, ranks=[1, 1])).status == 200
        assert (await scorer.score(request(1))).outcomes == (Scored(0.5),) * 2

    run(body, tmp_path / "answers.jsonl")


def test_an_example_that_cannot_be_drawn_fails_alone(tmp_path):
    class Torn(StubTask):
        def load(self, split, example_id, augmentation_seed):
            if example_id == "0":
                raise ValueError("the image is torn")
            return super().load(split, example_id, augmentation_seed)

    async def body(scorer, client):
        torn, whole = await ask(scorer, 0), await ask(scorer, 1)
        assert (await following(client))["group"]["example"] == "1"
        failure = (await torn).failure
        assert failure.kind is FailureKind.DATA
        assert "torn" in failure.reason
        whole.cancel()

    run(body, tmp_path / "answers.jsonl", task=Torn())
