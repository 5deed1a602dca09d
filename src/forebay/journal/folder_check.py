"""Whether the journals' folder takes files, asked now and then: what is wrong is logged once, and that it is over."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from typing_extensions import override

from forebay.errors import JournalError
from forebay.journal.journal import Journal, check_folder

logger = logging.getLogger("forebay.engine")

_DISK_PATIENCE = 10.0  # seconds that a disk may take to answer


class FolderCheck:
    """Looks at `folder`. A disk that does not answer holds up one thread, not whoever asks about it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failure: JournalError | None = None
        self._trying: asyncio.Future[None] | None = None

    @override
    def __repr__(self) -> str:
        return f"<FolderCheck of {self._folder}: {self._failure or 'usable'}>"

    async def check(self, own: Journal | None) -> None:
        """Raises JournalError while it takes no journal, or `own`, this process's, was removed."""
        try:
            await self._try(own)
        except JournalError as error:
            if self._failure is None:
                logger.error("journal folder unusable reason=%s", error)
            self._failure = error
            raise
        if self._failure is not None:
            self._failure = None
            logger.warning("journal folder usable again")

    async def _try(self, own: Journal | None) -> None:
        if own is None or own.stalled_for < _DISK_PATIENCE:
            if self._trying is None or self._trying.done():
                path = own.path if own is not None else None
                self._trying = asyncio.ensure_future(asyncio.to_thread(check_folder, self._folder, path))
            done, _ = await asyncio.wait([self._trying], timeout=_DISK_PATIENCE)
            if done:
                return self._trying.result()
        raise JournalError(
            "the disk that holds the journal does not answer; see that disk, or set FOREBAY_JOURNAL_DIR",
            location=str(self._folder),
        )

    def rebind(self) -> None:
        """Go on in another event loop; the one before has ended."""
        self._trying = None
