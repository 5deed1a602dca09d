"""A SQLite file: opened, set up, and whether somebody else holds it."""

from __future__ import annotations

import sqlite3
from typing import Any

import sqlalchemy as sa

from forebay.database.sql.sqlite import SQLITE_FUNCTIONS

# Short, since nothing can end SQLite's waiting for a lock: not a close either. The writer tries again.
BUSY_TIMEOUT_MS = 2000


def open_file(url: sa.URL) -> None:
    """Open a SQLite file, and close it again. Raises SQLAlchemy's errors."""
    engine = sa.create_engine(url.set(drivername="sqlite"))
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA schema_version"))
    finally:
        engine.dispose()


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


def is_held(error: sqlite3.Error) -> bool:
    """Whether it says that another connection holds the SQLite file, or a table in it."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
