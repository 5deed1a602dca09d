"""Elements' content on its way into the storage: secured on disk at once, uploaded in the background.

An element's row is written when its content is stored. A storage that fails is tried again, for `upload_timeout`
before the row is written without content, and on after that, less and less often. What is not done when the
process ends is gone on with by the next one.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import SystemRandom
from typing import Any, Protocol, TypeVar

import anyio
from anyio import CapacityLimiter
from chainlit.context import ChainlitContextException, context
from chainlit.data.storage_clients.base import BaseStorageClient
from tenacity import retry_if_exception_type, retry_if_not_exception_type

from forebay.attachments.blobs import Blobs
from forebay.attachments.content import Content, Contents, Source
from forebay.attachments.delivery import Delivery, Refused, Stored, retrying
from forebay.attachments.job import Job, reason_of
from forebay.attachments.spool import Entry, Secured
from forebay.errors import ForebayError, LayerClosed, RowError, StorageError
from forebay.model import cleaning
from forebay.model.changes import Upsert, decode
from forebay.primitives import threads
from forebay.primitives.awaitables import NOTHING, Deferred
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.uploads")

_DISK_THREADS = 16  # syncs side by side share what the disk does
_SETTLE_TIMEOUT = 5.0  # how long a read waits for uploads of its thread, in seconds
_ADOPT_EVERY = 30.0
_SWEEP_EVERY = 60.0

_STORAGE_TOO_LONG = "the storage takes longer than FOREBAY_UPLOAD_TIMEOUT; it is tried on"
_TOO_LONG = "fetching and keeping it takes longer than FOREBAY_UPLOAD_TIMEOUT; it is tried on"

_Result = TypeVar("_Result")


class Rows(Protocol):
    """Where elements' rows go. Each raises a ForebayError."""

    async def write(self, change: Upsert) -> bool:
        """Queue a row; False where its thread is deleted."""

    async def write_late(self, change: Upsert) -> None:
        """Write a row beneath what is newer; its content is garbage where none names it then."""

    async def is_outdated(self, change: Upsert) -> bool:
        """Whether the row names a content already that is as new as this one, or newer."""


class Uploads:
    """One process's uploads to `client`, whose rows go to `rows`.

    `mark` is called when the first content is stored: whose it is can be told then. `sweep`, which may be set, is
    called every minute or so.

    It starts itself at its first use, in the loop that runs then.
    """

    def __init__(
        self,
        client: BaseStorageClient,
        blobs: Blobs,
        settings: Settings,
        counts: Counts,
        metrics: Metrics,
        rows: Rows,
        mark: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._blobs = blobs
        self._settings = settings
        self._counts = counts
        self._rows = rows
        self.sweep: Callable[[], Awaitable[None]] = lambda: NOTHING
        self._secured = Secured(settings.journal_dir, sync=settings.durability != "memory")
        self._contents = Contents(self._secured, settings)
        self._delivery = Delivery(client, settings, counts, metrics, mark)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: dict[Job, asyncio.Task[None]] = {}
        self._last: dict[str, Job] = {}  # by element: the one that the next has to wait for

    # ---- life

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Go on in this loop with what processes before this one have left."""
        loop = loop or asyncio.get_running_loop()
        if loop is self._loop:
            return
        self._loop = loop
        self._jobs.clear()
        self._last.clear()
        self._adopted = asyncio.Event()
        self._threads = CapacityLimiter(_DISK_THREADS)
        self._contents.start(self._threads)
        self._delivery.start(self._threads)
        self._adopter = self._background(self._adopt(), "forebay-uploads")
        self._sweeper = self._background(self._sweep(), "forebay-garbage")
        for entry in self._secured.entries():  # of a loop that is closed
            self._go_on(entry)

    async def drain(self, timeout: float) -> None:
        """Return when every upload has been tried once, or after `timeout` seconds."""
        if self._loop is not None:
            with anyio.move_on_after(timeout):
                while waiting := [job.tried for job in self._jobs if not job.tried.done()]:
                    await asyncio.wait(waiting)

    async def close(self) -> None:
        """Stop; what is not stored stays on the disk for the next process."""
        if self._loop is None:
            return
        tasks = [self._adopter, self._sweeper, *self._jobs.values()]
        left = sum(job.entry is not None for job in self._jobs)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if left:
            logger.warning("closed with content that is not stored yet uploads=%d", left)
        await self._in_thread(self._secured.close)
        self._loop = None

    async def _adopt(self) -> None:
        while True:
            try:
                for entry in await self._in_thread(self._secured.adopt):
                    logger.warning("upload goes on that another process began bytes=%d", entry.size)
                    self._go_on(entry)
            except OSError as error:
                logger.error("uploads not looked for reason=%s", error.strerror)
            self._adopted.set()
            await anyio.sleep(_ADOPT_EVERY)

    async def _sweep(self) -> None:
        while True:
            # Processes that were started together need not all come at once.
            await anyio.sleep(_SWEEP_EVERY * SystemRandom().uniform(0.5, 1.5))
            await self.sweep()

    def _background(self, work: Any, name: str) -> asyncio.Task[Any]:
        # An empty context: the caller's would keep its Chainlit session alive as long as the task.
        return asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())

    # ---- what the layer calls

    def store(
        self, content: Content, change: Upsert, owner: Callable[[], Awaitable[str | None]]
    ) -> Awaitable[None]:
        """Begin to store an element's content under its `owner`, then its row, which is `change`.

        A file is held at once. To be awaited until both are done or, where the storage fails, until the content is
        secured and tried again later; that raises what queueing the row raises.
        """
        self.start()
        job = Job(change, self._due(), _person() or change.thread_id or "")
        self._begin(job, self._contents.source(content, owner))
        return Deferred(partial(asyncio.shield, job.tried))

    def settle(self, thread_id: str | None) -> Awaitable[None]:
        """Return when the thread's uploads (None: all) were tried once, or after a few seconds."""
        self.start()
        return self._settle(thread_id) if self._jobs or not self._adopted.is_set() else NOTHING

    async def _settle(self, thread_id: str | None) -> None:
        with anyio.move_on_after(_SETTLE_TIMEOUT):
            await self._adopted.wait()
            waiting = [job.tried for job in self._jobs if thread_id in (None, job.change.thread_id)]
            waiting = [tried for tried in waiting if not tried.done()]
            if waiting:
                await asyncio.wait(waiting)

    @property
    def steps(self) -> frozenset[str]:
        """The steps of the elements that are not done."""
        return frozenset(job.step_id for job in self._jobs if job.step_id)

    def among(self, object_keys: Iterable[str]) -> set[str]:
        """Those of the keys that a content is on its way to; its element's id is part of its key."""
        ids = {job.change.key for job in self._jobs if not job.deleted}
        return {key for key in object_keys if not ids.isdisjoint(key.split("/"))}

    def drop(
        self, *, element_id: str | None = None, thread_id: str | None = None, steps: Iterable[str] = ()
    ) -> list[Job]:
        """These elements' uploads wait for a delete, which `follow` gets: they are to leave neither row nor content."""
        self.start()
        of_steps = frozenset(steps)
        dropped = [
            job
            for job in self._jobs
            if job.change.key == element_id
            or job.step_id in of_steps
            or job.change.thread_id == thread_id is not None
        ]
        for job in dropped:
            job.drop()
        return dropped

    def follow(self, dropped: Sequence[Job], delete: Awaitable[None]) -> asyncio.Task[None]:
        """Carry out a delete, whoever waits for it; uploads whose delete the database refuses go on."""
        task = self._background(self._follow(dropped, delete), "forebay-delete")
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return task

    async def _follow(self, dropped: Sequence[Job], delete: Awaitable[None]) -> None:
        deleted = True
        try:
            await delete
        except RowError:
            deleted = False
            raise
        finally:
            for job in dropped:
                job.decide(deleted=deleted)
            if deleted:
                await self._forget_all(dropped)

    async def _forget_all(self, dropped: Sequence[Job]) -> None:
        """Make sure that no process after this one goes on with them."""
        for job in dropped:
            if job.entry is not None:
                await self._clear(partial(self._secured.forget, job.entry.path))

    async def _clear(self, act: Callable[[], None]) -> None:
        """Take an entry, or its note, off the disk. What stays there is done once more by the next process, in vain."""
        try:
            await self._in_thread(act)
        except OSError as error:
            logger.error("upload left behind reason=%s", error.strerror)

    # ---- a job

    def _go_on(self, entry: Entry) -> None:
        (change,) = decode(entry.note.change.encode())
        assert isinstance(change, Upsert)
        holder = entry.note.object_key.partition("/")[0]
        job = Job(change, self._due(), holder, entry, is_safe=True, is_late=True)
        self._contents.take_over(job, entry)
        self._begin(job, None)

    def _begin(self, job: Job, source: Source | None) -> None:
        before = self._last.get(job.change.key)
        self._last[job.change.key] = job
        self._jobs[job] = self._background(self._run(job, before, source), "forebay-upload")
        self._counts.uploads_pending = len(self._jobs)

    async def _run(self, job: Job, before: Job | None, source: Source | None) -> None:
        try:
            if source is not None:
                await self._in_time(job, self._secure(job, source), _TOO_LONG)
            if before is not None:
                await job.follow(before)
            await (self._write_row(job, job.change) if job.entry is None else self._deliver(job, job.entry))
        except asyncio.CancelledError:
            if not job.may_wait:
                job.settle(LayerClosed("the data layer was closed before the element was written"))
            raise
        except ForebayError as error:
            job.settle(error)
        except Exception as error:  # a fault of forebay's own; without this, nobody would be told
            job.settle(error)
            logger.exception("element not written reason=%s", type(error).__name__)
        finally:
            self._end(job)

    def _end(self, job: Job) -> None:
        job.settle()
        job.done.set()
        self._contents.give_back(job)
        self._jobs.pop(job, None)
        if self._last.get(job.change.key) is job:
            del self._last[job.change.key]
        self._counts.uploads_pending = len(self._jobs)

    async def _secure(self, job: Job, source: Source) -> None:
        """Make the job's entry. Where there is no content to be had, its row is written alone."""
        try:
            job.entry = await self._contents.secure(job, source)
            job.is_safe = job.entry is not None and self._secured.is_lasting
        except Exception as error:  # the disk, the server at the URL, or content of a wrong type
            self._fail(error)

    async def _deliver(self, job: Job, entry: Entry) -> None:
        """Store the content, then the row, and be done with the entry."""
        needed = False
        if job.is_late and await self._asking(job, partial(self._rows.is_outdated, job.change)):
            # Under the same key, it would take the place of a content that is newer.
            await self._forget(job, entry, needed=False)
            return
        self._blobs.keep(entry.note.object_key)  # a job before this one may be trying to delete it
        try:
            stored = await self._stored(job, entry)
            needed = stored is not None and await self._write_row(job, _with(job.change, *stored))
        except ForebayError as error:
            if isinstance(error, RowError) or not job.is_safe:  # nobody tries it another time
                await self._forget(job, entry, needed=False)
            raise
        await self._forget(job, entry, needed=needed)
        if needed:
            job.settle()
            await self._blobs.stored(entry.note.object_key)

    async def _forget(self, job: Job, entry: Entry, *, needed: bool) -> None:
        await self._clear(partial(self._secured.remove, entry.path))
        key = entry.note.object_key
        if job.begun and not needed:

            async def delete() -> bool:
                return await self._blobs.delete([key]) == [key]

            await self._blobs.surely(key, delete)

    async def _stored(self, job: Job, entry: Entry) -> Stored | None:
        """The object key and URL, however long that takes; None for a job that was dropped or refused for good."""
        try:
            return await self._in_time(job, self._delivery.deliver(job, entry), _STORAGE_TOO_LONG)
        except Refused as refused:
            self._fail(refused)
            await self._write_row(job, job.change)
            return None

    def _due(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.upload_timeout

    async def _in_time(self, job: Job, work: Coroutine[Any, Any, _Result], why: str) -> _Result:
        """What comes of the work, however long that takes; beside it, a job that is due has its row written once."""
        working = asyncio.ensure_future(work)
        try:
            left = max(0.0, job.due - asyncio.get_running_loop().time())
            done, _ = await asyncio.wait([working], timeout=None if job.told else left)
            if not done:
                job.told = True
                self._fail(StorageError(why))
                await self._write_row(job, job.change)
            return await working
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait([working])

    async def _write_row(self, job: Job, change: Upsert) -> bool:
        """Queue the row, as often as it takes. False: it is not wanted any more.

        Raises a ForebayError where no other process would go on with it.
        """
        if not job.is_safe:
            return not await job.is_gone() and await self._rows.write(change)
        if not job.is_late:
            return await self._asking(job, partial(self._rows.write, change))

        async def write() -> bool:
            await self._rows.write_late(change)
            return True

        return await self._asking(job, write)

    async def _asking(self, job: Job, ask: Callable[[], Awaitable[bool]]) -> bool:
        """What comes of it, as often as it takes; False for a job that was dropped."""

        async def asked() -> bool:
            return not await job.is_gone() and await ask()

        retry = retry_if_exception_type(ForebayError) & retry_if_not_exception_type((RowError, LayerClosed))
        return await retrying(job, self._counts).copy(retry=retry)(asked)

    # ---- small things

    def _fail(self, error: BaseException | None) -> None:
        self._counts.upload_failures += 1
        logger.error("element content not stored reason=%s", reason_of(error))

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        return await threads.run(act, self._threads)


def _person() -> str:
    """Who is logged in where this is called; empty for nobody."""
    try:
        user = context.session.user
    except ChainlitContextException:
        return ""
    return user.identifier if user is not None else ""


def _with(change: Upsert, object_key: str, url: str | None) -> Upsert:
    row = {**change.row, "objectKey": cleaning.text(object_key)}
    if url is not None:
        row["url"] = cleaning.text(url)
    return replace(change, row=row, size=change.size + len(object_key) + len(url or ""))
