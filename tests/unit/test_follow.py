"""A job is followed to its end through connections that break, each line printed once."""

import asyncio
import threading
import types

import aiohttp
import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from deploy import follow
from deploy.submit import SubmitError

LOG = [f"step {number}\n" for number in range(6)]


class Head:
    """Ray's job server: each connection has its turn of what happens to it.

    Attributes:
      turns: of each connection how many chunks of the log it sends, and what ends it: an error,
        None: the head closes it, or "silent": nothing comes any more.
      status: of the job, once all connections but the last have been made.
    """

    def __init__(self, *turns, status=JobStatus.SUCCEEDED, exit_code=0, down=0):
        self.turns, self.made, self.down = turns, 0, down
        self.ended = types.SimpleNamespace(status=status, driver_exit_code=exit_code, message="why")

    async def tail_job_logs(self, name):
        chunks, end = self.turns[self.made]
        self.made += 1
        for chunk in LOG[:chunks]:
            yield chunk
        if end == "silent":
            await asyncio.sleep(3600)
        if end is not None:
            raise end

    def get_job_info(self, name):
        if self.down:
            self.down -= 1
            raise ConnectionError("connection refused")
        if self.made < len(self.turns):
            return types.SimpleNamespace(status=JobStatus.RUNNING)
        return self.ended


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(follow, "SILENT_SECONDS", 0.01)


@pytest.mark.parametrize(
    "end",
    [
        RuntimeError("WebSocket connection closed unexpectedly with close code 1006"),
        aiohttp.ClientError("cannot connect"),
        ConnectionResetError("reset"),
        None,
    ],
)
def test_a_log_goes_on_where_its_connection_broke(capsys, end):
    head = Head((2, end), (0, end), (1, end), (5, end), (6, None), exit_code=3)
    assert follow.follow(head, "job") == 3
    assert capsys.readouterr().out == "".join(LOG)


def test_a_head_that_is_away_for_a_moment_costs_nothing(capsys):
    assert follow.follow(Head((2, None), (6, None), down=1), "job") == 0
    assert capsys.readouterr().out == "".join(LOG)


def test_a_connection_that_is_lost_without_a_word_does_not_outlast_the_job(capsys):
    class Ended(Head):
        def get_job_info(self, name):
            return self.ended

    assert follow.follow(Ended((2, "silent"), (6, None), exit_code=1), "job") == 1
    assert capsys.readouterr().out == "".join(LOG)
    assert follow.follow(Ended((2, "silent"), (3, "silent"), exit_code=1), "job") == 1
    assert capsys.readouterr().out == "".join(LOG[:3])


def test_a_head_that_takes_a_question_and_never_answers_is_given_up(monkeypatch):
    over = threading.Event()

    class Stopped(Head):
        def get_job_info(self, name):
            over.wait()

    monkeypatch.setattr(follow, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(follow, "LOST_SECONDS", -1.0)
    with pytest.raises(SubmitError, match=r"not answered for .*: no answer within .* may go on"):
        follow.follow(Stopped((2, "silent")), "job")
    over.set()


def test_a_stopped_job_and_one_that_did_not_start_are_told_apart():
    assert follow.follow(Head((6, None), status=JobStatus.STOPPED), "job") == 130
    with pytest.raises(SubmitError, match="job job did not start: why"):
        follow.follow(Head((0, None), status=JobStatus.FAILED, exit_code=None), "job")


def test_a_head_that_stays_away_or_has_forgotten_the_job_is_given_up(monkeypatch):
    for gone in (
        RuntimeError("Request failed with status code 404: Job job does not exist."),
        aiohttp.WSServerHandshakeError(
            types.SimpleNamespace(real_url="http://head"), (), status=404
        ),
    ):
        with pytest.raises(SubmitError, match="does not know job job"):
            follow.follow(Head((2, gone)), "job")
    monkeypatch.setattr(follow, "LOST_SECONDS", -1.0)
    with pytest.raises(SubmitError, match=r"has not answered for .* refused; job job may go on"):
        follow.follow(Head((2, None), down=1), "job")


def test_a_head_that_has_another_token_by_now_is_given_up_at_once():
    head = Head((2, AuthenticationError("401")), (6, None))
    with pytest.raises(SubmitError, match="refuses this token by now"):
        follow.follow(head, "job")
    assert head.made == 1
