"""The dead letters: the changes that a database refused, kept beside the journals until somebody decides.

One SQLite file a folder, which all processes on it share. A letter that comes again, as after a crash
between the letter and the checkpoint, is the same letter. The file is bounded, and gives back what it needs no more.
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
# What is removed leaves the disk, in the file and at its end; the latter only in a file that begins so.
_SETTINGS = ("PRAGMA synchronous = FULL", "PRAGMA secure_delete = ON", "PRAGMA auto_vacuum = FULL")


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


@dataclass(frozen=True, slots=True)
class Pile:
    """How many letters there are, and the bytes of their file."""

    letters: int = 0
    size: int = 0


class Unfit(JournalError):
    """No letter can hold this change, however often it is tried."""


def encoded(change: Change) -> bytes:
    """A change as a letter holds it. Raises Unfit."""
    try:
        return changes.encode([change])
    except Exception as failed:
        raise Unfit(f"the change can't be kept ({type(failed).__name__})") from None


class DeadLetters:
    """The letters in a folder. Its calls block, and raise JournalError where the file can't be used.

    `max_bytes`: the file takes no more than that, but for a letter that is alone in it.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.path = folder / FILE_NAME
        self._max_bytes = max_bytes

    @override
    def __repr__(self) -> str:
        return f"<DeadLetters {self.path}>"

    def keep(
        self, database: str, change: Change, error: ForebayError, database_id: str | None = None
    ) -> None:
        """Write a refused change to the disk; returns when it is synced. Raises JournalError where there is no room."""
        values = (
            time.time(),
            database,
            change.table,
            change.key,
            getattr(error, "sqlstate", None),
            str(error),
            encoded(change),
            database_id,
        )
        with self._opened() as connection:
            self._set_bound(connection)
            connection.execute(
                "INSERT INTO letters (made_at, database, row_table, row_id, sqlstate, error, change, database_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                values,
            )

    def count(self) -> int:
        """How many there are."""
        return self.pile().letters

    def pile(self) -> Pile:
        """How many there are, and how much they take up."""
        if not self._is_there():
            return Pile()
        with self._opened() as connection:
            letters = int(connection.execute("SELECT count(*) FROM letters").fetchone()[0])
            return Pile(letters, self.path.stat().st_size)

    def find(self, ids: Sequence[int] | None = None) -> list[Letter]:
        """These letters, or all, the oldest first."""
        if not self._is_there():
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

    def _is_there(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:
            raise JournalError(self._explain(error)) from None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self._create()
            with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
                for setting in _SETTINGS:
                    connection.execute(setting)
                connection.execute(_TABLE)
                _add_column(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise JournalError(self._explain(error), location=str(self.path)) from None

    def _set_bound(self, connection: sqlite3.Connection) -> None:
        if self._max_bytes is None or connection.execute("SELECT 1 FROM letters LIMIT 1").fetchone() is None:
            return
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count = {max(1, self._max_bytes // page_size)}")

    def _explain(self, error: sqlite3.Error | OSError) -> str:
        reason = getattr(error, "sqlite_errorname", None) or type(error).__name__
        remedy = "make room, or set FOREBAY_JOURNAL_DIR to a folder that this process may write to"
        if reason == "SQLITE_FULL" and self._max_bytes is not None:
            remedy = "retry or discard some, or raise FOREBAY_DEAD_LETTERS_MAX_BYTES, and look whether its disk is full"
        return f"the dead letters can't be used ({reason}); {remedy}"

    def _create(self) -> None:
        make_folder(self.path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            sync_folder(self.path.parent)


def _add_column(connection: sqlite3.Connection) -> None:
    """The first release's letters lack one."""
    if "database_id" not in {row[1] for row in connection.execute("PRAGMA table_info(letters)")}:
        connection.execute("ALTER TABLE letters ADD COLUMN database_id TEXT")
