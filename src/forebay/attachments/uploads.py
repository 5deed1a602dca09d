"""Elements' content on its way into the storage: secured on disk at once, uploaded in the background.

An element's row is written when its content is stored. A storage that fails is tried again, for `upload_timeout`
before the row is written without content, and on after that, less and less often. What is not done when the
process ends is gone on with by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter
from chainlit.config import FILES_DIRECTORY
from chainlit.context import ChainlitContextException, context
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import Element
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_never,
    wait_random_exponential,
)

from forebay.attachments.blobs import Blobs
from forebay.attachments.fetch import can_fetch, fetch
from forebay.attachments.file_route import to_be_saved
from forebay.attachments.folder import LocalStorageClient
from forebay.attachments.keys import object_key
from forebay.attachments.providers import takes_files
from forebay.attachments.spool import Entry, Held, Note, Secured
from forebay.errors import DatabaseError, ForebayError, LayerClosed, RowError, StorageError
from forebay.model import cleaning
from forebay.model.changes import Upsert, decode, encode
from forebay.primitives import threads
from forebay.primitives.awaitables import Deferred
from forebay.primitives.shares import Shares
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.uploads")

_DEFAULT_MIME = "application/octet-stream"
_DISK_THREADS = 16  # syncs side by side share what the disk does
_SETTLE_TIMEOUT = 5.0  # how long a read waits for uploads of its thread, in seconds
_ADOPT_EVERY = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 300.0
_CALL_TIMEOUT = 30.0  # for an upload, and on top of it what its size takes at the slowest line:
_SLOWEST_LINE = 256 * 1024  # bytes a second
_COST_OF_A_JOB = 64 * 1024  # bytes that the smallest content counts as, so that their number is bounded too

_MOST_REFUSALS = (
    12  # of a storage that fails half of the time, one content in some thousands is given up by this
)

_STORAGE_TOO_LONG = "the storage takes longer than FOREBAY_UPLOAD_TIMEOUT; it is tried on"
_TOO_LONG = "fetching and keeping it takes longer than FOREBAY_UPLOAD_TIMEOUT; it is tried on"

_Result = TypeVar("_Result")
Write = Callable[[Upsert], Awaitable[bool]]


class _Refused(StorageError):
    """The storage will not take this content, however often it is asked."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where an element's content is, noted before the element can change."""

    element_id: str
    name: str
    mime: str | None
    path: str | None
    url: str | None
    content: bytes | str | None

    @classmethod
    def of(cls, element: Element, element_id: str) -> Content:
        """Note it. `element_id`: the element's, as its row has it."""
        return cls(element_id, element.name, element.mime, element.path, element.url, element.content)

    def object_key(self, user_id: str | None) -> str:
        """`{user}/{element}/{name}`, as Chainlit's SQLAlchemy layer names it, each part cut to what storages take."""
        return object_key(user_id or "unknown", self.element_id, self.name)

    @property
    def is_elsewhere(self) -> bool:
        """Whether its URL is all there is, and of no kind that is fetched: `data:`, or a path on the server."""
        return not self.path and bool(self.url) and not can_fetch(self.url or "")


@dataclass(eq=False, slots=True)
class Job:
    """One element's content on its way. `tried`: its first attempt is over; `done`: the job is."""

    change: Upsert
    tried: asyncio.Future[None]
    due: float  # by the loop's clock: when its row is written without content, whatever that waits for
    entry: Entry | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: bool = False
    told: bool = False  # its row was written without content
    begun: bool = False  # an upload was tried, so something may be in the storage
    taken: int = 0  # bytes of room on the disk
    holder: str = ""  # whose content it is, where that is known: places and room are shared out by it
    refused_at: int = -1  # how many contents had been stored when it last failed
    refusals: int = 0  # how many of its failures came after another content had been stored

    @property
    def step_id(self) -> str | None:
        """Whose element it is."""
        return self.change.row.get("forId")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a new job's content comes from. `held` is the file, or why there is none."""

    content: Content
    held: Held | OSError | None
    owner: Callable[[], Awaitable[str | None]]


class Room:
    """A number of bytes that many may take from, in the order of their asking. More than all of it goes alone.

    One holder leaves a sixteenth to the others, so that nobody can shut them out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of_one = most - most // 16
        self._taken = 0
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[int, str, asyncio.Future[None]]] = deque()

    async def take(self, size: int, holder: str = "") -> None:
        """Wait until there is room, and take it."""
        if not self._waiting and self._fits(size, holder):
            self.force(size, holder)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, holder, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size, holder)
            else:
                with contextlib.suppress(ValueError):  # left out by those that were let in meanwhile
                    self._waiting.remove((size, holder, turn))
                self._admit()
            raise

    def force(self, size: int, holder: str = "") -> None:
        """Take it without asking: it is there already."""
        self._taken += size
        self._held[holder] += size

    def give(self, size: int, holder: str = "") -> None:
        """Give it back."""
        self._taken -= size
        self._held[holder] -= size
        if self._held[holder] <= 0:
            del self._held[holder]
        self._admit()

    def _fits(self, size: int, holder: str) -> bool:
        return self._taken == 0 or (self._taken + size <= self._most and self._is_fair(size, holder))

    def _is_fair(self, size: int, holder: str) -> bool:
        """Whether enough is left to the others. Nobody's name stands for all who have none."""
        return not holder or self._held[holder] + size <= self._of_one

    def _admit(self) -> None:
        """Let in, in order, whom there is room for; who has his share already lets the others pass."""
        for waiting in [*self._waiting]:
            size, holder, turn = waiting
            if not self._fits(size, holder):
                if self._is_fair(size, holder):
                    return
                continue
            self._waiting.remove(waiting)
            if not turn.done():
                self.force(size, holder)
                turn.set_result(None)


class Uploads:
    """One process's uploads to `client`. `write` queues an element's row; False where its thread is deleted.
    `mark` is called when the first content is stored: whose it is can be told then.

    It starts itself at its first use, in the loop that runs then.
    """

    def __init__(
        self,
        client: BaseStorageClient,
        blobs: Blobs,
        settings: Settings,
        counts: Counts,
        metrics: Metrics,
        write: Write,
        mark: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._mark = mark
        # Chainlit's clients take it since 2.7; an application's own need not.
        self._names_disposition = _takes(client.upload_file, "content_disposition")
        self._blobs = blobs
        self._settings = settings
        self._counts = counts
        self._metrics = metrics
        self._write = write
        self._secured = Secured(settings.journal_dir, sync=settings.durability != "memory")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: dict[Job, asyncio.Task[None]] = {}
        self._stored_last = 0  # how many contents were stored so far
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
        self._slots = Shares(self._settings.upload_concurrency)
        self._fetches = Shares(self._settings.upload_concurrency)
        self._threads = CapacityLimiter(_DISK_THREADS)
        self._memory = Room(self._settings.upload_max_bytes)
        self._disk = Room(self._settings.upload_disk_max_bytes)
        self._adopter = self._background(self._adopt(), "forebay-uploads")
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
        tasks = [self._adopter, *self._jobs.values()]
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
        job = Job(change, _quiet_future(), self._due(), holder=_person() or change.thread_id or "")
        self._begin(job, _Source(content, self._hold(content), owner))
        return Deferred(partial(asyncio.shield, job.tried))

    def _hold(self, content: Content) -> Held | OSError | None:
        """A file is held at once: its session may remove it before a thread gets to it."""
        if not content.path:
            return None
        path = Path(content.path)
        try:
            # Chainlit writes a session's file once. An application may write into its own again.
            return self._secured.hold(path, unchanging=path.is_relative_to(FILES_DIRECTORY))
        except OSError as error:
            return error

    async def settle(self, thread_id: str | None) -> None:
        """Return when the thread's uploads (None: all) were tried once, or after a few seconds."""
        self.start()
        if self._adopted.is_set() and not self._jobs:
            return
        with anyio.move_on_after(_SETTLE_TIMEOUT):
            await self._adopted.wait()
            waiting = [job.tried for job in self._jobs if thread_id in (None, job.change.thread_id)]
            waiting = [tried for tried in waiting if not tried.done()]
            if waiting:
                await asyncio.wait(waiting)

    @property
    def steps(self) -> set[str]:
        """The steps of the elements that are not done."""
        return {job.step_id for job in self._jobs if job.step_id}

    def among(self, object_keys: Iterable[str]) -> set[str]:
        """Those of the keys that a content is on its way to; its element's id is part of its key."""
        ids = {job.change.key for job in self._jobs if not job.dropped}
        return {key for key in object_keys if not ids.isdisjoint(key.split("/"))}

    def drop(
        self, *, element_id: str | None = None, thread_id: str | None = None, steps: Iterable[str] = ()
    ) -> list[Job]:
        """Have these elements' uploads leave neither row nor content; `forget` them then."""
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
            job.dropped = True
            job.woken.set()
        return dropped

    async def forget(self, dropped: Iterable[Job]) -> None:
        """Make sure that no process after this one goes on with them."""
        for job in dropped:
            if job.entry is not None:
                await self._in_thread(partial(self._secured.forget, job.entry.path))

    # ---- a job

    def _go_on(self, entry: Entry) -> None:
        (change,) = decode(entry.note.change.encode())
        assert isinstance(change, Upsert)
        holder = entry.note.object_key.partition("/")[0]
        job = Job(change, _quiet_future(), self._due(), entry, taken=_cost(entry.size), holder=holder)
        self._disk.force(job.taken, holder)
        self._begin(job, None)

    def _begin(self, job: Job, source: _Source | None) -> None:
        before = self._last.get(job.change.key)
        self._last[job.change.key] = job
        self._jobs[job] = self._background(self._run(job, before, source), "forebay-upload")
        self._counts.uploads_pending = len(self._jobs)

    async def _run(self, job: Job, before: Job | None, source: _Source | None) -> None:
        try:
            if source is not None:
                await self._in_time(job, self._secure(job, source), _TOO_LONG)
            if before is not None:
                await _after(before, job)
            await (self._write_row(job, job.change) if job.entry is None else self._deliver(job, job.entry))
        except ForebayError as error:
            _settle(job.tried, error)
        except Exception as error:  # a fault of forebay's own; without this, nobody would be told
            _settle(job.tried, error)
            logger.exception("element not written reason=%s", type(error).__name__)
        finally:
            self._end(job)

    def _end(self, job: Job) -> None:
        _settle(job.tried)
        job.done.set()
        self._disk.give(job.taken, job.holder)
        self._jobs.pop(job, None)
        if self._last.get(job.change.key) is job:
            del self._last[job.change.key]
        self._counts.uploads_pending = len(self._jobs)

    # ---- securing

    async def _secure(self, job: Job, source: _Source) -> None:
        """Make the job's entry. Where there is no content to be had, its row is written alone."""
        try:
            if source.content.is_elsewhere:
                return
            path = await self._content(job, source)
            if path is not None:
                mime = source.content.mime or _DEFAULT_MIME
                key = source.content.object_key(await source.owner())
                note = Note(key, mime, encode([job.change]).decode())
                if not job.dropped:
                    job.entry = await self._in_thread(partial(self._secured.enter, path, note))
        except Exception as error:  # the disk, the server at the URL, or content of a wrong type
            self._fail(error)
        finally:
            if isinstance(source.held, Held):
                source.held.close()

    async def _content(self, job: Job, source: _Source) -> Path | None:
        """The file that the content is in then; None where it should stay where it is."""
        held = source.held
        if isinstance(held, OSError):
            raise held
        path = held.target if held is not None else self._secured.place()
        kept = False
        try:
            kept = await self._put_into(path, job, source)
        finally:
            if not kept:
                await self._in_thread(partial(self._secured.remove, path))
        return path if kept else None

    async def _put_into(self, path: Path, job: Job, source: _Source) -> bool:
        """Have the content in a file. False: it should stay where it is."""
        content, held = source.content, source.held
        if isinstance(held, Held):
            await self._take_disk(job, held.size)
            await self._in_thread(partial(self._secured.keep, held))
            return True
        if content.url:
            async with self._fetches.place(job.holder):
                fetched = await fetch(content.url, path, self._settings)
                await self._take_disk(job, fetched.size)
            # A page about a video is no video: its player needs the page's own URL.
            return fetched.mime != "text/html" or content.mime == "text/html"
        if content.content is None:
            raise FileNotFoundError("the element has no content")
        await self._take_disk(job, len(content.content))
        await self._in_thread(partial(self._secured.write, content.content, path))
        return True

    async def _take_disk(self, job: Job, size: int) -> None:
        try:
            with anyio.fail_after(self._settings.queue_timeout):
                await self._disk.take(_cost(size), job.holder)
        except TimeoutError:
            raise StorageError("FOREBAY_UPLOAD_DISK_MAX_BYTES wait already") from None
        job.taken = _cost(size)

    # ---- uploading

    async def _deliver(self, job: Job, entry: Entry) -> None:
        """Store the content, then the row, and be done with the entry."""
        needed = False
        self._blobs.keep(entry.note.object_key)  # a job before this one may be trying to delete it
        try:
            stored = await self._stored(job, entry)
            needed = stored is not None and await self._write_row(job, _with(job.change, *stored))
        except RowError:  # nor will it be taken another time
            await self._forget(job, entry, needed=False)
            raise
        await self._forget(job, entry, needed=needed)
        if needed:
            _settle(job.tried)
            await self._blobs.stored(entry.note.object_key)

    async def _forget(self, job: Job, entry: Entry, *, needed: bool) -> None:
        await self._in_thread(partial(self._secured.remove, entry.path))
        key = entry.note.object_key
        if job.begun and not needed:

            async def delete() -> bool:
                return await self._blobs.delete([key]) == [key]

            await self._blobs.surely(key, delete)

    async def _stored(self, job: Job, entry: Entry) -> tuple[str, str | None] | None:
        """The object key and URL, however long that takes; None for a job that was dropped or refused for good."""
        try:
            return await self._in_time(job, self._retrying(job)(self._upload, job, entry), _STORAGE_TOO_LONG)
        except _Refused as refused:
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

    def _retrying(self, job: Job) -> AsyncRetrying:
        async def pause(seconds: float) -> None:
            with anyio.move_on_after(seconds):
                await job.woken.wait()
            if not job.dropped:
                job.woken.clear()

        def note(state: RetryCallState) -> None:
            self._counts.upload_retries += 1
            error = state.outcome.exception() if state.outcome is not None else None
            logger.warning("upload is tried again attempt=%d reason=%s", state.attempt_number, _reason(error))
            _settle(job.tried)

        return AsyncRetrying(
            wait=wait_random_exponential(_FIRST_PAUSE, _LONGEST_PAUSE),
            stop=stop_never,
            sleep=pause,
            before_sleep=note,
            retry=retry_if_exception_type(Exception) & retry_if_not_exception_type(_Refused),
        )

    async def _upload(self, job: Job, entry: Entry) -> tuple[str, str | None] | None:
        if job.dropped:
            return None
        async with self._slots.place(job.holder):
            job.begun = True
            before = self._stored_last
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
        self._stored_last += 1
        for job in self._jobs:
            if job.refused_at:
                job.woken.set()

    async def _leave_mark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is None:
            return
        try:
            await mark()
        except (ForebayError, OSError) as error:  # the next process will
            logger.info("storage not marked reason=%s", type(error).__name__)

    def _note_failure(self, job: Job, stored_before: int) -> None:
        """A storage that takes others', time after time, will never take this one. Raises _Refused then."""
        if job.refused_at != stored_before:
            job.refused_at = stored_before
            job.refusals += 1
        if job.refusals > _MOST_REFUSALS:
            raise _Refused(
                "the storage takes others' content, and has never taken this one; it is given up"
            ) from None

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
            file = await self._in_thread(partial(entry.path.open, "rb"))
            with file:
                return await upload(data=file)  # type: ignore[arg-type]
        await self._memory.take(entry.size)
        try:
            return await upload(data=await self._in_thread(entry.path.read_bytes))
        finally:
            self._memory.give(entry.size)

    def _disposition(self, key: str, mime: str) -> dict[str, str]:
        saved = to_be_saved(key, mime) if self._names_disposition else None
        return {} if saved is None else {"content_disposition": saved}

    async def _write_row(self, job: Job, change: Upsert) -> bool:
        """Queue the row, as often as it takes. False: it is not wanted any more."""

        async def write() -> bool:
            return not job.dropped and await self._write(change)

        retry = retry_if_exception_type(ForebayError) & retry_if_not_exception_type((RowError, LayerClosed))
        return await self._retrying(job).copy(retry=retry)(write)

    # ---- small things

    def _fail(self, error: BaseException | None) -> None:
        self._counts.upload_failures += 1
        logger.error("element content not stored reason=%s", _reason(error))

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        return await threads.run(act, self._threads)


def _person() -> str:
    """Who is logged in where this is called; empty for nobody."""
    try:
        user = context.session.user
    except ChainlitContextException:
        return ""
    return user.identifier if user is not None else ""


async def _after(before: Job, job: Job) -> None:
    """Wait for the job of the same element that came first; who waits for this one waits for its first try only."""
    await asyncio.wait([before.tried])
    if not before.done.is_set():
        _settle(job.tried)
    await before.done.wait()


def _with(change: Upsert, object_key: str, url: str | None) -> Upsert:
    row = {**change.row, "objectKey": cleaning.text(object_key)}
    if url is not None:
        row["url"] = cleaning.text(url)
    return replace(change, row=row, size=change.size + len(object_key) + len(url or ""))


def _cost(size: int) -> int:
    return max(size, _COST_OF_A_JOB)


def _reason(error: BaseException | None) -> str:
    """An error of forebay's own says nothing that may not be logged; others by their kind alone."""
    if isinstance(error, ForebayError) and not isinstance(error, DatabaseError):
        return str(error)
    return type(error).__name__


def _quiet_future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    # Nobody may be waiting for it, and what went wrong is logged already.
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
    return future


def _settle(future: asyncio.Future[None], error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether it has this parameter. Compiled code need not tell, nor a mock before Python 3.11.4: then it has not."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
