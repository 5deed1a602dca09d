"""A driver's error while migrating -> one of forebay's, whose message says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import sqlalchemy as sa

from forebay.database import error_codes
from forebay.errors import AccessError, DatabaseError, ForebayError, SchemaError, TransientError

_DRIVERS = (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
_AGAIN = "`forebay migrate` may be run again at any time; it goes on from where this run was."
_NOT_BEGUN = ("28", "3D", "SQLITE_CANTOPEN", "SQLITE_NOTADB")  # the login or the database's name is wrong
_BUSY = frozenset({"55P03", "40P01"})  # lock_not_available, deadlock_detected


def is_busy(error: BaseException) -> bool:
    """Whether another session held a lock on the tables, so that the same may work in a moment."""
    return any(_sqlstate(cause) in _BUSY for cause in _causes(error))


@contextmanager
def translated() -> Iterator[None]:
    """Raise AccessError, SchemaError or TransientError instead of the errors of the floors below.

    Their text is not kept beyond its first line, for the rest may quote a row.
    """
    try:
        yield
    except ForebayError:
        raise
    except _DRIVERS as error:
        for cause in _causes(error):
            if not isinstance(cause, Exception):  # a cancellation, which Alembic's tidying up has hidden
                raise cause from None
        raise _translate(error) from None


def _translate(error: Exception) -> DatabaseError:
    for cause in _causes(error):
        if state := _sqlstate(cause):
            return _explain(error_codes.from_sqlstate(state), _first_line(cause))
        if isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorname", None) or "SQLITE_MISUSE"
            return _explain(error_codes.from_sqlite(code, str(cause)), _first_line(cause))
        if (unreachable := error_codes.from_network(cause)) is not None:
            return unreachable
    if isinstance(error, sa.exc.TimeoutError):
        return TransientError("the database can't be reached: no connection is free")
    said = f"{type(error).__name__}: {_first_line(error)}"
    return SchemaError(f"the tables could not be migrated ({said}). {_AGAIN}")


def _explain(known: DatabaseError, said: str) -> DatabaseError:
    state = known.sqlstate
    if state in _BUSY:
        return TransientError(
            f"other sessions keep the tables locked ({said}); end long transactions, which pg_stat_activity shows."
            f" {_AGAIN}",
            sqlstate=state,
        )
    if state == "42501":
        return AccessError(
            f"the database user lacks a right ({said}); grant it the rights on the tables, forebay's own included,"
            f" or, to migrate, run `forebay migrate` as their owner, with the right to create tables. {_AGAIN}",
            sqlstate=state,
        )
    if state is not None and state.startswith(_NOT_BEGUN):
        return known
    if isinstance(known, AccessError | TransientError):
        return type(known)(f"{known}: {said}. {_AGAIN}", sqlstate=state)
    return SchemaError(f"the tables could not be migrated: {said} ({state}). {_AGAIN}", sqlstate=state)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the driver's inside it, and those that it followed."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        original = getattr(error, "orig", None)
        if isinstance(original, BaseException):
            yield from (original, *filter(None, [original.__cause__]))
        error = error.__cause__ or error.__context__


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) and not isinstance(error, ForebayError) else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rpartition(">: ")[2]
