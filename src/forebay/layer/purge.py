"""Deleting threads that nobody has used for a while, a few at a time, as a person's own delete does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from forebay.database.outdated import Outdated
from forebay.database.store import Store

logger = logging.getLogger("forebay")

# Few enough to be gone soon after they were looked for; so many deletes are one batch.
_AT_ONCE = 20
PAUSE = 0.1  # seconds between two pages, for those who chat meanwhile


async def purge(
    store: Store,
    delete: Callable[[str], Awaitable[None]],
    outdated: Outdated,
    *,
    pause: float = PAUSE,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Delete all of them; how many. `progress` gets how many so far. Raises a DatabaseError, and may be run again."""
    done, after = 0, None
    while page := await outdated.page(store, after, _AT_ONCE):
        await asyncio.gather(*(delete(thread_id) for thread_id in page))
        done, after = done + len(page), page[-1]
        if progress is not None:
            progress(done)
        await asyncio.sleep(pause)
    logger.info("purged threads=%d before=%s by=%s", done, outdated.before, outdated.by)
    return done
