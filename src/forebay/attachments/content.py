"""An element's content before its upload: noted when the element is sent, and put into the spool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from chainlit.config import FILES_DIRECTORY
from chainlit.element import Element

from forebay.attachments.fetch import can_fetch, fetch
from forebay.attachments.job import Job
from forebay.attachments.keys import object_key
from forebay.attachments.spool import Entry, Held, Note, Secured
from forebay.errors import StorageError
from forebay.model.changes import encode
from forebay.primitives import threads
from forebay.primitives.byte_budget import ByteBudget
from forebay.primitives.shares import Shares
from forebay.settings import Settings

_DEFAULT_MIME = "application/octet-stream"
_COST_OF_A_JOB = 64 * 1024  # bytes that the smallest content counts as, so that their number is bounded too

_Result = TypeVar("_Result")


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


@dataclass(frozen=True, slots=True)
class Source:
    """Where a new job's content comes from. `held` is the file, or why there is none."""

    content: Content
    held: Held | OSError | None
    owner: Callable[[], Awaitable[str | None]]


class Contents:
    """Puts contents into the spool, from a file, a URL or memory, within FOREBAY_UPLOAD_DISK_MAX_BYTES."""

    def __init__(self, spool: Secured, settings: Settings) -> None:
        self._spool = spool
        self._settings = settings

    def start(self, limiter: anyio.CapacityLimiter) -> None:
        """Begin in the loop that runs now, where nothing is on its way yet. `limiter`: of threads at the disk."""
        self._limiter = limiter
        self._fetches = Shares(self._settings.upload_concurrency)
        self._disk = ByteBudget(self._settings.upload_disk_max_bytes)

    def source(self, content: Content, owner: Callable[[], Awaitable[str | None]]) -> Source:
        """Where it comes from. A file is held at once: its session may remove it before a thread gets to it."""
        if not content.path:
            return Source(content, None, owner)
        path = Path(content.path)
        held: Held | OSError
        try:
            # Chainlit writes a session's file once. An application may write into its own again.
            held = self._spool.hold(path, unchanging=path.is_relative_to(FILES_DIRECTORY))
        except OSError as error:
            held = error
        return Source(content, held, owner)

    def take_over(self, job: Job, entry: Entry) -> None:
        """Count an entry that is there already: of another process, or of a loop that has ended."""
        job.taken = cost_of(entry.size)
        self._disk.force(job.taken, job.holder)

    def give_back(self, job: Job) -> None:
        """Its room on the disk is others' again."""
        self._disk.give(job.taken, job.holder)

    async def secure(self, job: Job, source: Source) -> Entry | None:
        """Make the job's entry; None where there is no content to be had, or nobody wants it any more.

        Raises whatever the disk, the server at the URL, or content of a wrong type has it raise.
        """
        try:
            if source.content.is_elsewhere:
                return None
            path = await self._content(job, source)
            if path is None:
                return None
            mime = source.content.mime or _DEFAULT_MIME
            key = source.content.object_key(await source.owner())
            note = Note(key, mime, encode([job.change]).decode())
            if await job.is_gone():
                await self._in_thread(partial(self._spool.remove, path))
                return None
            return await self._in_thread(partial(self._spool.enter, path, note))
        finally:
            if isinstance(source.held, Held):
                source.held.close()

    async def _content(self, job: Job, source: Source) -> Path | None:
        """The file that the content is in then; None where it should stay where it is."""
        held = source.held
        if isinstance(held, OSError):
            raise held
        path = held.target if held is not None else self._spool.place()
        kept = False
        try:
            kept = await self._put_into(path, job, source)
        finally:
            if not kept:
                await self._in_thread(partial(self._spool.remove, path))
        return path if kept else None

    async def _put_into(self, path: Path, job: Job, source: Source) -> bool:
        """Have the content in a file. False: it should stay where it is."""
        content, held = source.content, source.held
        if isinstance(held, Held):
            await self._take_disk(job, held.size)
            await self._in_thread(partial(self._spool.keep, held))
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
        await self._in_thread(partial(self._spool.write, content.content, path))
        return True

    async def _take_disk(self, job: Job, size: int) -> None:
        try:
            with anyio.fail_after(self._settings.queue_timeout):
                await self._disk.take(cost_of(size), job.holder)
        except TimeoutError:
            raise StorageError("FOREBAY_UPLOAD_DISK_MAX_BYTES wait already") from None
        job.taken = cost_of(size)

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        return await threads.run(act, self._limiter)


def cost_of(size: int) -> int:
    """What a content of so many bytes counts as."""
    return max(size, _COST_OF_A_JOB)
