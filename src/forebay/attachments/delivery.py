"""A content's way from the spool into the storage: tried until the storage has it, or will never take it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
from chainlit.data.storage_clients.base import BaseStorageClient
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_never,
    wait_random_exponential,
)

from forebay.attachments.file_route import to_be_saved
from forebay.attachments.folder import LocalStorageClient
from forebay.attachments.job import Job, reason_of
from forebay.attachments.providers import takes_files
from forebay.attachments.spool import Entry
from forebay.errors import ForebayError, StorageError
from forebay.primitives import threads
from forebay.primitives.byte_budget import ByteBudget
from forebay.primitives.shares import Shares
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.uploads")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 300.0
_CALL_TIMEOUT = 30.0  # for an upload, and on top of it what its size takes at the slowest line:
_SLOWEST_LINE = 256 * 1024  # bytes a second
# A storage that fails half of the time gives one content in some thousands up by this.
_MOST_REFUSALS = 12

Stored = tuple[str, str | None]  # an object's key and its URL


class Refused(StorageError):
    """The storage will not take this content, however often it is asked."""


class Delivery:
    """Uploads to `client`, so many at once as the settings say.

    `mark` is called when the first content is stored: whose it is can be told then.
    """

    def __init__(
        self,
        client: BaseStorageClient,
        settings: Settings,
        counts: Counts,
        metrics: Metrics,
        mark: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._counts = counts
        self._metrics = metrics
        self._mark = mark
        # Chainlit's clients take it since 2.7; an application's own need not.
        self._names_disposition = _takes(client.upload_file, "content_disposition")
        self._stored = 0  # how many contents were stored so far
        self._failing: set[Job] = set()

    def start(self, limiter: anyio.CapacityLimiter) -> None:
        """Begin in the loop that runs now. `limiter`: of threads at the disk."""
        self._limiter = limiter
        self._slots = Shares(self._settings.upload_concurrency)
        self._memory = ByteBudget(self._settings.upload_max_bytes)
        self._failing.clear()

    async def deliver(self, job: Job, entry: Entry) -> Stored | None:
        """Have it in the storage, however long that takes; None for a job that was dropped. Raises Refused."""
        try:
            return await retrying(job, self._counts)(self._upload, job, entry)
        finally:
            self._failing.discard(job)

    async def _upload(self, job: Job, entry: Entry) -> Stored | None:
        if await job.is_gone():
            return None
        async with self._slots.place(job.holder):
            job.begun = True
            before = self._stored
            try:
                with self._metrics.uploading(), anyio.fail_after(_CALL_TIMEOUT + entry.size / _SLOWEST_LINE):
                    stored = await self._put(entry)
                    if not stored or not stored.get(
                        "object_key"
                    ):  # Chainlit's S3 client tells so that it failed
                        raise StorageError("the storage client has not stored it")
            except Exception:
                self._note_failure(job, before)
                raise
        self._note_stored()
        await self._leave_mark()
        return stored["object_key"], stored.get("url")

    def _note_stored(self) -> None:
        """The storage takes contents, so those that failed are worth another try."""
        self._stored += 1
        for job in self._failing:
            job.woken.set()

    def _note_failure(self, job: Job, stored_before: int) -> None:
        """A storage that takes others', time after time, will never take this one. Raises Refused then."""
        self._failing.add(job)
        if job.refused_at != stored_before:
            job.refused_at = stored_before
            job.refusals += 1
        if job.refusals > _MOST_REFUSALS:
            raise Refused(
                "the storage takes others' content, and has never taken this one; it is given up"
            ) from None

    async def _leave_mark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is None:
            return
        try:
            await mark()
        except (ForebayError, OSError) as error:  # the next process will
            logger.info("storage not marked reason=%s", type(error).__name__)

    async def _put(self, entry: Entry) -> dict[str, Any]:
        key, mime = entry.note.object_key, entry.note.mime
        if isinstance(self._client, LocalStorageClient):
            return await self._client.upload_path(key, entry.path, mime)
        upload = partial(
            self._client.upload_file,
            object_key=key,
            mime=mime,
            overwrite=True,
            **self._disposition(key, mime),
        )
        if takes_files(self._client):
            file = await threads.run(partial(entry.path.open, "rb"), self._limiter)
            with file:
                return await upload(data=file)  # type: ignore[arg-type]  # Chainlit's base class says bytes
        await self._memory.take(entry.size)
        try:
            return await upload(data=await threads.run(entry.path.read_bytes, self._limiter))
        finally:
            self._memory.give(entry.size)

    def _disposition(self, key: str, mime: str) -> dict[str, str]:
        saved = to_be_saved(key, mime) if self._names_disposition else None
        return {} if saved is None else {"content_disposition": saved}


def retrying(job: Job, counts: Counts) -> AsyncRetrying:
    """Tries again until it succeeds or raises Refused, less and less often; a job that is woken, at once."""

    async def pause(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await job.woken.wait()
        if not job.is_dropped:
            job.woken.clear()

    def note(state: RetryCallState) -> None:
        counts.upload_retries += 1
        error = state.outcome.exception() if state.outcome is not None else None
        logger.warning("upload is tried again attempt=%d reason=%s", state.attempt_number, reason_of(error))
        job.tried_once()

    return AsyncRetrying(
        wait=wait_random_exponential(_FIRST_PAUSE, _LONGEST_PAUSE),
        stop=stop_never,
        sleep=pause,
        before_sleep=note,
        retry=retry_if_exception_type(Exception) & retry_if_not_exception_type(Refused),
    )


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether it has this parameter. Compiled code need not tell, nor a mock before Python 3.11.4: then it has not."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
