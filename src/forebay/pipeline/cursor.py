"""Where a journal stands in the database, as far as the process that writes it knows."""

from __future__ import annotations

import secrets
import uuid
from typing import Protocol

from typing_extensions import override

from forebay.database.checkpoint import TOKEN_BITS, Checkpoint, Position
from forebay.model.changes import Change


class Source(Protocol):
    """Where a journal's changes can be read again."""

    async def read(self, after_seq: int, max_bytes: int) -> list[tuple[int, Change]]:
        """The next changes behind `after_seq`, at least one where there is any."""

    def went_back(self, seq: int) -> None:
        """The database has it up to here only."""


class Cursor:
    """A journal's place. `at` is where the last answered statement led; `source`, where it can be read again."""

    def __init__(self, journal_id: str, at: Position | None = None, source: Source | None = None) -> None:
        self.journal_id = journal_id
        self.at = at or Position()
        self.source = source
        self._parts: list[Position] = []  # where it was since `at` has its `seq`
        self._tried: Position | None = None  # where the last step leads, answered or not

    @override
    def __repr__(self) -> str:
        return f"<Cursor {self.journal_id} at {self.at.seq}>"

    def step(self, last_seq: int) -> Checkpoint:
        """The next step, to `last_seq`, or, with 0, of a part that leaves `seq` where it is."""
        # The system's randomness: two copies of a virtual machine would draw the same otherwise.
        after = self._tried = Position(last_seq or self.at.seq, secrets.randbits(TOKEN_BITS) + 1)
        return Checkpoint(self.journal_id, self.at, after)

    def reached(self, position: Position) -> None:
        """A step was carried out."""
        if position.seq == self.at.seq:
            self._parts.append(self.at)
        else:
            self._parts.clear()
        self.at = position

    def has_tried(self, position: Position) -> bool:
        """Whether the last step leads there: it was carried out, and who took it was gone before the answer came."""
        return position == self._tried

    def is_ahead_of(self, position: Position) -> bool:
        """Whether it was there before: the database has gone back, and nobody else has written the journal."""
        return position.seq < self.at.seq or position in self._parts

    def went_back(self, position: Position) -> None:
        """Go on from where the database stands."""
        self.at = position
        self._parts.clear()
        if self.source is not None:
            self.source.went_back(position.seq)

    def renew(self) -> None:
        """Begin a checkpoint of its own: somebody else goes on with the present one."""
        self.journal_id = uuid.uuid4().hex
        self.at = Position()
        self._parts.clear()
