"""What a standby must have, so that whoever reads there sees all that this process has written.

A standby replays commits in their order. So one of them stands for all that had ended when it began, and where a
checkpoint stands in a standby's snapshot tells which of them are in it.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import override

from forebay.database.checkpoint import Checkpoint, Position

_COMMITTING = "forebay_committing"


class _Mark(NamedTuple):
    position: Position
    ended: int


class Bookmarks:
    """Where the checkpoints stand that this process knows of, but those that later ones stand for."""

    def __init__(self) -> None:
        self._ended = (
            1  # commits, numbered as they end; the first stands for what a process before this one wrote
        )
        self._unmarked = 1  # the last that has moved no checkpoint, 0 when there is one that stands for it
        self._open = 0  # connections that have begun to commit, and may go on
        self._marks: dict[str, _Mark] = {}
        self._begun: dict[str, tuple[Position, int]] = {}

    @override
    def __repr__(self) -> str:
        return f"<Bookmarks {len(self._marks)}{'' if self.complete else ', incomplete'}>"

    @property
    def complete(self) -> bool:
        """Whether they stand for everything; else only the primary has it for sure."""
        return not self._unmarked and not self._open

    @property
    def lack_one(self) -> bool:
        """Whether a step of any checkpoint, taken now, would complete them."""
        return bool(self._unmarked) and not self._open

    @property
    def positions(self) -> dict[str, Position]:
        """By journal, how far each must be there."""
        return {journal_id: mark.position for journal_id, mark in self._marks.items()}

    def encoded(self) -> str:
        """The positions, as the statements have them."""
        rows = [
            {"journal_id": journal_id, "seq": position.seq, "token": position.token}
            for journal_id, position in self.positions.items()
        ]
        return orjson.dumps(rows).decode()

    def begin(self, checkpoint: Checkpoint) -> None:
        """A statement that takes this step is sent, perhaps again: it may be the first of them that is carried out."""
        begun = self._begun.get(checkpoint.journal_id)
        if begun is None or begun[0] != checkpoint.after:
            self._begun[checkpoint.journal_id] = checkpoint.after, self._ended

    def committed(self, checkpoint: Checkpoint) -> None:
        """The step was carried out."""
        _, began = self._begun.pop(checkpoint.journal_id, (None, 0))
        self._ended += 1
        before = self._marks.get(checkpoint.journal_id)
        self._marks = {key: mark for key, mark in self._marks.items() if mark.ended > began}
        if before is not None and before.position.seq > checkpoint.after.seq:
            # It is written again, to a database that went back: all was there before.
            self._marks[checkpoint.journal_id] = before
        else:
            self._marks[checkpoint.journal_id] = _Mark(checkpoint.after, self._ended)
        if self._unmarked <= began:
            self._unmarked = 0

    def reached(self, journal_id: str, seq: int) -> None:
        """Another process has written this one's journal up to `seq`."""
        self._ended += 1
        # By which token it does not say; whatever is above the number before is up to here.
        self._marks[journal_id] = _Mark(Position(seq - 1, -1), self._ended)

    def committed_unmarked(self) -> None:
        """Something was committed, or may have been, that has moved no checkpoint."""
        self._ended += 1
        self._unmarked = self._ended

    # ---- what SQLAlchemy commits: the application's own

    def watch(self, engine: AsyncEngine) -> None:
        """Note what is committed on the engine's connections, from the moment on at which that begins."""
        sa.event.listen(engine.sync_engine, "commit", self._on_commit)
        sa.event.listen(engine.sync_engine, "checkin", self._on_checkin)

    def _on_commit(self, connection: sa.Connection) -> None:
        if _COMMITTING not in connection.info:
            connection.info[_COMMITTING] = True
            self._open += 1

    def _on_checkin(self, _connection: object, record: sa.pool.ConnectionPoolEntry) -> None:
        self.own_ended(record.info)

    def own_ended(self, info: dict[object, object]) -> None:
        """Nothing is committed any more on the connection of which this is known."""
        if info.pop(_COMMITTING, False):
            self._open -= 1
            self.committed_unmarked()
