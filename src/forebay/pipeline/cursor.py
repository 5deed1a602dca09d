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
    """A journal's place. `at` is where the last answered statement led; `source`, where it can be read again.

    While it is held, what is written goes on and `at` keeps its number: somebody who comes after a crash reads the
    journal from there. `written_seq` is up to where it was written.
    """

    def __init__(self, journal_id: str, at: Position | None = None, source: Source | None = None) -> None:
        self.journal_id = journal_id
        self.at = at or Position()
        self.source = source
        self.written_seq = self.at.seq
        self._holds = 0
        self._was_held = False  # since `at` has its `seq`
        self._parts: list[Position] = []  # where it was since `at` has its `seq`
        self._was_at = 0  # before the database went back, until it has again what it lacks
        self._tried: Position | None = None  # where the last step leads, answered or not

    @override
    def __repr__(self) -> str:
        return f"<Cursor {self.journal_id} at {self.at.seq}>"

    @property
    def is_held(self) -> bool:
        """Whether something behind `at` is nowhere but in the journal."""
        return self._holds > 0

    @property
    def known_seq(self) -> int:
        """Up to where whoever reads has to see: where the database stands, or stood before it went back."""
        return max(self.at.seq, self._was_at)

    def hold(self) -> None:
        """Something of what comes behind `at` has to stay in the journal, until as often `let_go` is called."""
        self._holds += 1

    def let_go(self) -> None:
        """It is safe elsewhere."""
        self._holds -= 1

    def written(self, seq: int) -> None:
        """Everything up to here is in, or accounted for otherwise."""
        self.written_seq = max(self.written_seq, seq)

    def step(self, last_seq: int) -> Checkpoint:
        """The next step, to `last_seq`, or, with 0 or while it is held, one that leaves `seq` where it is."""
        # The system's randomness: two copies of a virtual machine would draw the same otherwise.
        seq = self.at.seq if self.is_held else last_seq or self.at.seq
        after = self._tried = Position(seq, secrets.randbits(TOKEN_BITS) + 1)
        return Checkpoint(self.journal_id, self.at, after)

    def reached(self, position: Position) -> None:
        """A step was carried out."""
        if position.seq != self.at.seq:
            self._parts.clear()
            self._was_held = False
        elif self.is_held:  # for so long that not every place is remembered
            self._was_held = True
        else:
            self._parts.append(self.at)
        self.at = position
        self.written(position.seq)

    def has_tried(self, position: Position) -> bool:
        """Whether the last step leads there: it was carried out, and who took it was gone before the answer came."""
        return position == self._tried

    def is_ahead_of(self, position: Position) -> bool:
        """Whether it was there before: the database has gone back, and nobody else has written the journal."""
        if position.seq == self.at.seq:
            return self._was_held or position in self._parts
        return position.seq < self.at.seq

    def went_back(self, position: Position) -> None:
        """Go on from where the database stands."""
        self._was_at = self.known_seq
        self.at = position
        self.written_seq = position.seq
        self._parts.clear()
        if self.source is not None:
            self.source.went_back(position.seq)

    def given_again(self) -> None:
        """The database has again what it lacked, or as much of that as there is."""
        self._was_at = 0

    def renew(self) -> None:
        """Begin a checkpoint of its own: somebody else goes on with the present one."""
        self._was_at = 0
        self.journal_id = uuid.uuid4().hex
        self.at = Position()
        self._parts.clear()
