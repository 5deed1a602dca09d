"""One element's content on its way: what is known of it, and who waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from forebay.attachments.spool import Entry
from forebay.errors import DatabaseError, ForebayError
from forebay.model.changes import Upsert


@dataclass(eq=False, slots=True)
class Job:
    """One element's content on its way. `tried`: its first attempt is over; `done`: the job is."""

    change: Upsert
    due: float  # by the loop's clock: when its row is written without content, whatever that waits for
    holder: str = ""  # whose content it is, where that is known: places and room are shared out by it
    entry: Entry | None = None
    tried: asyncio.Future[None] = field(default_factory=lambda: _quiet_future())
    done: asyncio.Event = field(default_factory=asyncio.Event)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    deletes: int = 0  # those of it of which nobody knows yet whether the database takes them
    deleted: bool = False
    decided: asyncio.Event = field(default_factory=asyncio.Event)  # whether it takes one of them
    is_safe: bool = False  # where this process ends, another one goes on with it
    is_late: bool = False  # another process has begun it, so that the row may be newer by now
    told: bool = False  # its row was written without content
    begun: bool = False  # an upload was tried, so something may be in the storage
    taken: int = 0  # bytes of room on the disk
    refused_at: int = -1  # how many contents had been stored when it last failed
    refusals: int = 0  # how many of its failures came after another content had been stored

    @property
    def step_id(self) -> str | None:
        """Whose element it is."""
        return self.change.row.get("forId")

    def drop(self) -> None:
        """Somebody deletes it: it waits until `decide` says what has become of that."""
        self.deletes += 1
        self.woken.set()

    def decide(self, *, deleted: bool) -> None:
        """A delete of it is done, or was refused."""
        self.deletes -= 1
        self.deleted = self.deleted or deleted
        self.decided.set()

    @property
    def is_dropped(self) -> bool:
        """Whether it is deleted, as far as is known."""
        return self.deleted or self.deletes > 0

    async def is_gone(self) -> bool:
        """Whether it is deleted, once that is known."""
        while self.deletes and not self.deleted:
            self.decided.clear()
            await self.decided.wait()
        return self.deleted

    @property
    def may_wait(self) -> bool:
        """Whether its row is sure to come, whatever becomes of this process, or is there, though without content."""
        return self.is_safe or self.told

    def tried_once(self) -> None:
        """Its first attempt has failed: who waits for it goes on if they may, and else waits for the next one."""
        if self.may_wait:
            self.settle()

    def settle(self, error: Exception | None = None) -> None:
        """Let go on who waits for its first attempt."""
        if self.tried.done():
            return
        if error is None:
            self.tried.set_result(None)
        else:
            self.tried.set_exception(error)

    async def follow(self, before: Job) -> None:
        """Wait for the job of the same element that came first; who waits for this one waits for its first try only."""
        await asyncio.wait([before.tried])
        if not before.done.is_set():
            self.settle()
        await before.done.wait()


def reason_of(error: BaseException | None) -> str:
    """An error of forebay's own says nothing that may not be logged; others by their kind alone."""
    if isinstance(error, ForebayError) and not isinstance(error, DatabaseError):
        return str(error)
    return type(error).__name__


def _quiet_future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    # Nobody may be waiting for it, and what went wrong is logged already.
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
    return future
