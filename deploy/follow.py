"""Follows a job of a cluster: prints its log until it ends, also where the connection breaks.

Ray sends a log from its beginning to each connection; what has been printed is left out.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import Future

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from deploy.submit import LOOK_SECONDS, SubmitError

logger = logging.getLogger(__name__)

INTERRUPTED = 130
LOST_SECONDS = 300.0
# A connection that is lost without a word is like a job that prints nothing.
SILENT_SECONDS = 30.0
ANSWER_SECONDS = 30.0
GONE = "status code 404"
# aiohttp's and requests' own, and what Ray says of other answers.
BROKEN = (aiohttp.ClientError, OSError, RuntimeError, AuthenticationError)


def follow(client: JobSubmissionClient, name: str) -> int:
    """Prints a job's log until it ends; returns the driver's exit code, 130 when it was stopped.

    Raises:
      SubmitError: the job did not start, the cluster does not know it, or the head did not answer
        for `LOST_SECONDS`.
    """
    info = asyncio.run(_Follower(client, name).follow())
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.driver_exit_code is None:
        raise SubmitError(f"job {name} did not start: {info.message}")
    return int(info.driver_exit_code)


class _Follower:
    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self._client, self._name = client, name
        self._printed = 0  # characters of the log
        self._answered = time.monotonic()
        self._silent_at_end = False  # once, with the job ended: another connection may bring more

    async def follow(self) -> JobDetails:
        """What became of the job, its log printed."""
        while True:
            try:
                await self._show()
                # Where the head has lost the node's agent, this ends before the job does.
                info = await self._look()
                if info.status.is_terminal():
                    return info
            except BROKEN as error:
                self._bear(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _show(self) -> None:
        """Prints what has not been printed, until the connection is closed."""
        known = self._printed
        chunks = self._client.tail_job_logs(self._name)
        while True:
            coming = asyncio.ensure_future(anext(chunks, None))
            try:
                while not (await asyncio.wait({coming}, timeout=SILENT_SECONDS))[0]:
                    if not (await self._look()).status.is_terminal():
                        continue
                    if self._silent_at_end:
                        logger.warning("the end of the log does not come: its node may be lost")
                        return
                    self._silent_at_end = True
                    raise ConnectionError(f"nothing comes of job {self._name}, which has ended")
            finally:
                coming.cancel()
            text = coming.result()
            if text is None:
                return
            self._answered = time.monotonic()
            new = text[known:]
            known = max(0, known - len(text))
            print(new, end="", flush=True)
            self._printed += len(new)

    async def _look(self) -> JobDetails:
        answer: Future[JobDetails] = Future()
        answer.set_running_or_notify_cancel()  # else a late answer has nowhere to go
        # Ray's requests have no deadline. A daemon: one that waits must not keep this from ending.
        threading.Thread(target=self._ask, args=(answer,), daemon=True).start()
        try:
            info = await asyncio.wait_for(asyncio.wrap_future(answer), ANSWER_SECONDS)
        except TimeoutError as error:
            raise ConnectionError(f"no answer within {ANSWER_SECONDS:g} s") from error
        self._answered = time.monotonic()
        return info

    def _ask(self, answer: Future[JobDetails]) -> None:
        try:
            answer.set_result(self._client.get_job_info(self._name))
        except Exception as error:  # noqa: BLE001  # raised where it is waited for
            answer.set_exception(error)

    def _bear(self, error: Exception) -> None:
        """Goes on after a broken connection, unless that is of no use."""
        if GONE in str(error) or getattr(error, "status", None) == 404:
            raise SubmitError(f"the cluster does not know job {self._name} any more") from error
        if isinstance(error, AuthenticationError):
            raise SubmitError(
                f"the head refuses this token by now: {error}; job {self._name} may go on"
            ) from error
        silent = time.monotonic() - self._answered
        if silent > LOST_SECONDS:
            raise SubmitError(
                f"the head has not answered for {silent:.0f} s: {error}; job {self._name} may go on"
            ) from error
        logger.info("the connection to the head broke: %s", error)
