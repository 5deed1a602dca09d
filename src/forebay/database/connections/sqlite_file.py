"""A SQLite file: opened, set up, and whether somebody else holds it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from threading import Thread
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa
from typing_extensions import override

from forebay.database.sql.sqlite import SQLITE_FUNCTIONS

# Short, since nothing can end SQLite's waiting for a lock: not a close either. The writer tries again.
BUSY_TIMEOUT_MS = 2000


def open_file(url: sa.URL) -> None:
    """Open a SQLite file, and close it again; a new one is its owner's alone. Raises SQLAlchemy's errors."""
    _make_private(url.database or "")
    engine = sa.create_engine(url.set(drivername="sqlite"))
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA schema_version"))
    finally:
        engine.dispose()


def _make_private(name: str) -> None:
    """SQLite would make the file readable by everybody; what it makes beside it has the file's own mode."""
    if not name.startswith("file:"):
        with contextlib.suppress(OSError):  # it is there, or can't be made, which SQLite will say
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def prepare_sqlite(connection: Any) -> None:
    """Set a new connection to a SQLite file up: its pragmas and forebay's functions."""
    cursor = connection.cursor()
    # FULL syncs each commit, as PostgreSQL does.
    for pragma in (f"busy_timeout = {BUSY_TIMEOUT_MS}", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    try:
        cursor.execute("PRAGMA journal_mode = WAL")  # lets readers go on while a batch commits
    except sqlite3.OperationalError as error:
        # The mode is the file's. While another connection writes, or sets it, this one must do without waiting.
        if not is_held(error):
            raise
    cursor.close()
    for name, count, function in SQLITE_FUNCTIONS:
        connection.create_function(name, count, function, deterministic=True)


class File(sqlite3.Connection):
    """A connection to a SQLite file whose close lets go of the file.

    SQLite leaves that to the last cursor, which the frames of what was on its way may hold: what was begun would stay
    begun, and what is read half locked, until the garbage collector came by.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    @override
    def cursor(self, *arguments: Any, **named: Any) -> Any:
        """As there; it is closed with the connection."""
        cursor = super().cursor(*arguments, **named)
        self._cursors.add(cursor)
        return cursor

    @override
    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As there, whose own makes a cursor that `cursor` does not know of."""
        made: sqlite3.Cursor = self.cursor()
        return made.execute(*arguments)

    @override
    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(sqlite3.Error):
            for cursor in list(self._cursors):
                cursor.close()
            self.rollback()
        super().close()


def end(connection: Any) -> None:
    """Close an aiosqlite connection whose event loop has ended, when it is done with what it is at."""
    raw: sqlite3.Connection | None = getattr(connection, "_connection", None)
    if hasattr(connection, "stop"):  # since aiosqlite 0.22; it needs no event loop
        connection.stop()
    if raw is None:
        return
    # An answer that no loop takes ends the connection's thread by an error, before it comes to that.
    Thread(target=_close_after, args=(connection, raw), name="forebay-sqlite-end", daemon=True).start()


def _close_after(connection: Any, raw: sqlite3.Connection) -> None:
    thread: Thread = getattr(connection, "_thread", connection)  # before 0.22 a connection is a thread
    thread.join()
    raw.close()


def is_held(error: sqlite3.Error) -> bool:
    """Whether it says that another connection holds the SQLite file, or a table in it."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
