"""Deleting many threads, a few at a time, as a person's own delete does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from forebay.database.outdated import Outdated
from forebay.database.store import Store

logger = logging.getLogger("forebay")

# Few enough to be gone soon after they were looked for; so many deletes are one batch.
_AT_ONCE = 20
PAUSE = 0.1  # seconds between two pages, for those who chat meanwhile


class Pages(Protocol):
    """Which threads."""

    async def page(self, store: Store, after: str | None, size: int) -> list[str]:
        """The ids of the next ones behind `after`, in the order of the ids. Raises a DatabaseError."""


async def delete_all(
    store: Store,
    delete: Callable[[str], Awaitable[None]],
    pages: Pages,
    *,
    pause: float = PAUSE,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Delete all of them; how many. `progress` gets how many so far. Raises a DatabaseError, and may be run again."""
    done, after = 0, None
    while page := await pages.page(store, after, _AT_ONCE):
        await asyncio.gather(*(delete(thread_id) for thread_id in page))
        done, after = done + len(page), page[-1]
        if progress is not None:
            progress(done)
        await asyncio.sleep(pause)
    return done


async def purge(
    store: Store,
    delete: Callable[[str], Awaitable[None]],
    outdated: Outdated,
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Delete those that nobody has used for a while, as `delete_all`."""
    done = await delete_all(store, delete, outdated, progress=progress)
    logger.info("purged threads=%d before=%s by=%s", done, outdated.before, outdated.by)
    return done
