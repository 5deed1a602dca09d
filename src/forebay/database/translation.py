"""Every driver's error as one of forebay's, without its text, which may quote a row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import asyncpg
import sqlalchemy as sa

from forebay.database import error_codes
from forebay.errors import (
    AccessError,
    DatabaseError,
    ForebayError,
    RowError,
    SchemaError,
    StatementError,
    TransientError,
)

IN_USE = "every connection is in use; raise FOREBAY_POOL_SIZE"


@contextmanager
def translated(location: str, *, own_statement: bool = False, sends_rows: bool = True) -> Iterator[None]:
    """Every driver's error as one of forebay's, without its cause, whose text may quote a row."""
    try:
        yield
    except DatabaseError as error:  # a migration's, which does not know where it is
        error.location = error.location or location
        raise
    except ForebayError:
        raise
    except Exception as error:
        raise translate(error, location, own_statement=own_statement, sends_rows=sends_rows) from None


def translate(
    error: Exception, location: str, *, own_statement: bool = False, sends_rows: bool = True
) -> DatabaseError:
    """A driver's or SQLAlchemy's error as one of forebay's; see `translated`."""
    translation = _translation(error, own_statement=own_statement, sends_rows=sends_rows)
    if isinstance(
        translation, TransientError | AccessError | SchemaError
    ):  # it is about the database, not a row
        translation.location = location
    return translation


def _translation(error: Exception, *, own_statement: bool, sends_rows: bool) -> DatabaseError:
    for cause in causes(error):
        if isinstance(cause, DatabaseError):  # refused by forebay itself, inside of SQLAlchemy
            return cause
        if isinstance(cause, asyncpg.PostgresError) and cause.sqlstate:
            return _of_postgres(cause, cause.sqlstate, own_statement)
        if isinstance(cause, sqlite3.Error):
            return _of_sqlite(cause, own_statement)
        if isinstance(cause, sa.exc.TimeoutError):
            return TransientError(IN_USE)
        if isinstance(cause, asyncpg.InternalClientError):  # its session was ended in the middle of an answer
            return TransientError("the driver lost track of the database's answers")
        if known_of_network := error_codes.from_network(cause):
            if not sends_rows:
                known_of_network.sqlstate = None  # nothing that was written took too long
            return known_of_network
    return _of_nothing_known(type(error).__name__, own_statement, sends_rows)


def _of_nothing_known(kind: str, own_statement: bool, sends_rows: bool) -> DatabaseError:
    if own_statement:
        return StatementError(f"the statement or its parameters are wrong ({kind})")
    if not sends_rows:  # or good rows would be dead letters for what went wrong before them
        return TransientError(f"the database can't be reached ({kind})")
    return RowError(f"a row can't be sent to the database ({kind})")


def _of_postgres(error: asyncpg.PostgresError, sqlstate: str, own_statement: bool) -> DatabaseError:
    known = _by_name(_by_a_row(error) or error_codes.from_sqlstate(sqlstate), error)
    return _of_its_own(known, error) if own_statement else known


def _of_sqlite(error: sqlite3.Error, own_statement: bool) -> DatabaseError:
    code = getattr(error, "sqlite_errorname", None) or "SQLITE_MISUSE"
    known = error_codes.from_sqlite(code, str(error))
    if not own_statement:
        return known
    if code == "SQLITE_ERROR" and isinstance(known, RowError):
        known = StatementError("SQLite does not understand the statement", sqlstate=code)
    return _of_its_own(known, error)


def sqlstate_of(error: Exception) -> str:
    """The SQLSTATE that PostgreSQL has answered, or the driver in its place; empty where there is none."""
    for cause in causes(error):
        if isinstance(cause, asyncpg.PostgresError):
            return cause.sqlstate or ""
    return ""


def is_lost(error: Exception) -> bool:
    """Whether a connection has ended under a statement, or has been ended."""
    sqlstate = sqlstate_of(error)
    if sqlstate:
        return sqlstate.startswith(("08", "57P"))
    return any(
        isinstance(cause, ConnectionError | EOFError | asyncpg.InterfaceError | asyncpg.InternalClientError)
        or (isinstance(cause, OSError) and cause.errno is not None)
        for cause in causes(error)
        if not isinstance(cause, ValueError)  # asyncpg's word for a parameter that it can't send
    )


def _by_name(known: DatabaseError, cause: asyncpg.PostgresError) -> DatabaseError:
    """With the constraint that refuses the row, which PostgreSQL names apart from the text that quotes values."""
    name = getattr(cause, "constraint_name", None)
    if not name or not isinstance(known, RowError):
        return known
    return RowError(f"{known}, constraint {name}", sqlstate=known.sqlstate)


# What in PostgreSQL says no to a row, whatever the SQLSTATE: the functions of its source that an error comes from.
_REFUSING = {
    "exec_stmt_raise": "a trigger refuses the row",
    "ExecWithCheckOptions": "a row-level security policy or a view's check refuses the row",
}


def _by_a_row(error: asyncpg.PostgresError) -> RowError | None:
    """The refusal of a row that its SQLSTATE does not tell: a trigger may raise any."""
    reason = _REFUSING.get(getattr(error, "server_source_function", None) or "")
    return RowError(f"{reason} (SQLSTATE {error.sqlstate})", sqlstate=error.sqlstate) if reason else None


def causes(error: BaseException) -> Iterable[BaseException]:
    """An error and what it comes from, the first of all first."""
    seen: BaseException | None = error
    while seen is not None:
        original = getattr(seen, "orig", None)
        if isinstance(original, BaseException):
            yield from causes(original)
        yield seen
        seen = seen.__cause__


def _of_its_own(error: DatabaseError, cause: BaseException) -> DatabaseError:
    """With what is wrong in the caller's own statement."""
    if isinstance(error, StatementError):
        # Errors of this class quote names of the statement, never values.
        return StatementError(f"{error}: {str(cause).splitlines()[0]}", sqlstate=error.sqlstate)
    return error
