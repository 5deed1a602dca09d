"""The dead letters: the changes that a database refused, kept beside the journals until somebody decides.

One SQLite file a folder, which all processes on it share. A letter that comes again, as after a crash
between the letter and the checkpoint, is the same letter.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from forebay.errors import ForebayError, JournalError
from forebay.journal.log_format import make_folder
from forebay.model import changes
from forebay.model.changes import Change
from forebay.primitives.posix import sync_folder

FILE_NAME = "dead-letters.db"
_TABLE = """
CREATE TABLE IF NOT EXISTS letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, made_at REAL NOT NULL, database TEXT NOT NULL, row_table TEXT NOT NULL,
    row_id TEXT NOT NULL, sqlstate TEXT, error TEXT NOT NULL, change BLOB NOT NULL, database_id TEXT,
    UNIQUE (database, row_table, row_id, change));
"""
_FIND = """
SELECT id, made_at, database, row_table, row_id, sqlstate, error, database_id, change FROM letters ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Letter:
    """A refused change. `made_at`: when it was refused, in seconds since 1970; `database`: where, without a password.

    `database_id` is that database's own id, None in what the first release has left.
    `error` never quotes the row; the change does hold its content.
    """

    id: int
    made_at: float
    database: str
    table: str
    row_id: str
    sqlstate: str | None
    error: str
    database_id: str | None
    change: Change

    def is_for(self, location: str, database_id: str | None) -> bool:
        """Whether it was refused by this database, under whatever URL."""
        if self.database_id is not None and database_id is not None:
            return self.database_id == database_id
        return self.database == location


class Unfit(JournalError):
    """No letter can hold this change, however often it is tried."""


class DeadLetters:
    """The letters in a folder. Its calls block, and raise JournalError where the file can't be used."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    @override
    def __repr__(self) -> str:
        return f"<DeadLetters {self.path}>"

    def keep(
        self, database: str, change: Change, error: ForebayError, database_id: str | None = None
    ) -> None:
        """Write a refused change to the disk; returns when it is synced."""
        try:
            encoded = changes.encode([change])
        except Exception as failed:
            raise Unfit(f"the change can't be kept ({type(failed).__name__})") from None
        values = (
            time.time(),
            database,
            change.table,
            change.key,
            getattr(error, "sqlstate", None),
            str(error),
            encoded,
            database_id,
        )
        with self._opened() as connection:
            connection.execute(
                "INSERT INTO letters (made_at, database, row_table, row_id, sqlstate, error, change, database_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                values,
            )

    def count(self) -> int:
        """How many there are."""
        if not self.path.exists():
            return 0
        with self._opened() as connection:
            return int(connection.execute("SELECT count(*) FROM letters").fetchone()[0])

    def find(self, ids: Sequence[int] | None = None) -> list[Letter]:
        """These letters, or all, the oldest first."""
        if not self.path.exists():
            return []
        with self._opened() as connection:
            rows = connection.execute(_FIND).fetchall()
        letters = (Letter(*row[:-1], *changes.decode(row[-1])) for row in rows)
        return [letter for letter in letters if ids is None or letter.id in ids]

    def refused_again(self, letter_id: int, error: ForebayError) -> None:
        """Note why a letter was refused now."""
        with self._opened() as connection:
            connection.execute(
                "UPDATE letters SET error = ?, sqlstate = ? WHERE id = ?",
                (str(error), getattr(error, "sqlstate", None), letter_id),
            )

    def remove(self, letter_id: int) -> None:
        """Forget a letter."""
        with self._opened() as connection:
            connection.execute("DELETE FROM letters WHERE id = ?", (letter_id,))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self._create()
            with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(_TABLE)
                _add_column(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "sqlite_errorname", None) or type(error).__name__
            raise JournalError(
                f"the dead letters in {self.path} can't be used ({reason}); make room, or set FOREBAY_JOURNAL_DIR to"
                " a folder that this process may write to"
            ) from None

    def _create(self) -> None:
        make_folder(self.path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            sync_folder(self.path.parent)


def _add_column(connection: sqlite3.Connection) -> None:
    """The first release's letters lack one."""
    if "database_id" not in {row[1] for row in connection.execute("PRAGMA table_info(letters)")}:
        connection.execute("ALTER TABLE letters ADD COLUMN database_id TEXT")
