"""How far a journal is in the database: a row that only who knows where it stands can move on."""

from __future__ import annotations

from typing import NamedTuple

from forebay.errors import ForebayError

TOKEN_BITS = 62  # a BIGINT's, and none is 0


class Position(NamedTuple):
    """Everything up to `seq` is in the database. `token` is drawn anew by each statement that moves it there.

    Parts of a batch move the token alone. So a statement is known by where it leads: one whose answer was lost
    is told from another writer's, and one that arrives late finds nothing to start from.
    """

    seq: int = 0
    token: int = 0


class Checkpoint(NamedTuple):
    """The step of a journal that goes with a statement: it is carried out from `before` alone."""

    journal_id: str
    before: Position
    after: Position

    @property
    def parameters(self) -> dict[str, str | int]:
        """As the statements have them."""
        return {
            "journal_id": self.journal_id,
            "from_seq": self.before.seq,
            "from_token": self.before.token,
            "to_seq": self.after.seq,
            "to_token": self.after.token,
        }


class CheckpointMoved(ForebayError):
    """The journal does not stand where this process left it, so nothing was written. `position`: where it stands."""

    def __init__(self, position: Position) -> None:
        super().__init__(f"the database has the journal up to {position.seq}, which is not where it was left")
        self.position = position
