"""Which of the databases' errors is which.

The codes are PostgreSQL's SQLSTATEs (appendix A of its manual) and SQLite's result codes (its C interface's
"Result and Error Codes"). No message here repeats the database's own, which may quote a row.
"""

from __future__ import annotations

import socket
import ssl

import asyncpg

from forebay.errors import AccessError, DatabaseError, RowError, SchemaError, StatementError, TransientError

_POOLER = (
    "a prepared statement is not the connection's, as behind a pooler in transaction mode; add ?statement_cache_size=0"
    " to the URL"
)
_MIGRATE = "run `forebay migrate`, or set FOREBAY_AUTO_MIGRATE=true"

# By the longest prefix of the SQLSTATE that is listed.
_SQLSTATES: dict[str, tuple[type[DatabaseError], str]] = {
    "08": (TransientError, "the connection to the database is lost"),
    "21": (RowError, "two changes meet in one row"),
    "22": (RowError, "a value does not fit its column"),
    "22P02": (RowError, "a value does not fit its column; ids must be UUIDs in the PostgreSQL tables"),
    "23": (RowError, "a constraint refuses the row"),
    "23502": (RowError, "a required column has no value"),
    "23503": (RowError, "the row refers to one that does not exist"),
    "23505": (RowError, "the row's unique value is taken"),
    "25006": (TransientError, "the database is read-only; it may be a standby that takes over"),
    "26000": (TransientError, _POOLER),
    "28": (AccessError, "the database refuses the login; check the user and the password in the URL"),
    "3D000": (AccessError, "there is no such database; check the name in the URL"),
    "3F000": (SchemaError, f"there is no such schema; check search_path, then {_MIGRATE}"),
    "40": (TransientError, "the database rolled the transaction back"),
    "42": (StatementError, "the database does not understand the statement"),
    "42501": (AccessError, "the database user may not do this; grant it the rights on the tables"),
    "42703": (SchemaError, f"a column is missing in the tables; {_MIGRATE}"),
    "42804": (SchemaError, f"a column has another type in the tables; {_MIGRATE}"),
    "42P01": (SchemaError, f"a table is missing; {_MIGRATE}"),
    "42P05": (TransientError, _POOLER),
    "42P10": (SchemaError, f"a unique index is missing in the tables; {_MIGRATE}"),
    "53": (TransientError, "the database is out of a resource"),
    "53300": (
        TransientError,
        "the database has no connection left; lower FOREBAY_POOL_SIZE or raise max_connections",
    ),
    "54": (RowError, "the row is beyond one of the database's limits"),
    "55": (TransientError, "the database object is in use"),
    "57": (TransientError, "the database ended the statement or is shutting down"),
    "58": (TransientError, "the database's own system failed"),
    "P0001": (RowError, "a trigger refuses the row"),
    "XX": (TransientError, "the database reports an error of its own"),
}

_SQLITE_CODES: dict[str, tuple[type[DatabaseError], str]] = {
    "SQLITE_AUTH": (AccessError, "SQLite refuses access"),
    "SQLITE_BUSY": (TransientError, "another process holds the SQLite file"),
    "SQLITE_CANTOPEN": (
        AccessError,
        "the SQLite file can't be opened; its folder must exist and be writable",
    ),
    "SQLITE_CONSTRAINT": (RowError, "a constraint refuses the row"),
    "SQLITE_CONSTRAINT_NOTNULL": (RowError, "a required column has no value"),
    "SQLITE_CORRUPT": (AccessError, "the SQLite file is damaged; restore it from a copy"),
    "SQLITE_FULL": (TransientError, "the disk that holds the SQLite file is full"),
    "SQLITE_INTERRUPT": (TransientError, "the statement was interrupted"),
    "SQLITE_IOERR": (TransientError, "the disk that holds the SQLite file fails"),
    "SQLITE_LOCKED": (TransientError, "the SQLite table is in use"),
    "SQLITE_MISMATCH": (RowError, "a value does not fit its column"),
    "SQLITE_NOMEM": (TransientError, "SQLite is out of memory"),
    "SQLITE_NOTADB": (AccessError, "the file is not a SQLite database; check the path in the URL"),
    "SQLITE_PERM": (AccessError, "the SQLite file's permissions forbid this"),
    "SQLITE_PROTOCOL": (TransientError, "the SQLite file's locks are in disorder"),
    "SQLITE_RANGE": (StatementError, "a parameter is missing"),
    "SQLITE_READONLY": (AccessError, "the SQLite file or its folder is read-only; make both writable"),
    "SQLITE_TOOBIG": (RowError, "the row is beyond SQLite's size limit"),
}
_NETWORK: dict[type[BaseException], str] = {
    socket.gaierror: "no address is known for the host's name",
    ConnectionRefusedError: "nobody listens at its host and port",
    ConnectionResetError: "the connection was cut",
    BrokenPipeError: "the connection was cut",
    TimeoutError: "it does not answer in time",
    FileNotFoundError: "there is no such socket",
}
# Another transaction was in the way, and has gone on: the same one, tried at once, is likely to get through.
_PASSING = ("40", "SQLITE_BUSY", "SQLITE_LOCKED")
# What somebody has written can't be held: a text, a number, a size. Another's row may well be.
_VALUES = ("22", "54", "SQLITE_MISMATCH", "SQLITE_TOOBIG")
CONFLICT = "40001"  # rolled back for the sake of another transaction
LOCKED = "55P03"  # somebody holds a row
CANCELLED = "57014"  # a statement that took too long
# What is about the server, the login, the connection or the tables, whatever is written. Of SQLite's, two are not.
_OF_ALL = ("08", "25", "26", "42", "53100", "53300", "57P", "SQLITE_")
_OF_A_STATEMENT = ("SQLITE_INTERRUPT", "SQLITE_NOMEM")
READ_ONLY = "25006"
TOO_MANY = "53300"
# The server is not what it was, or the session has other settings than new ones get. A login or a name that is wrong
# now was right when the session began.
_MOVED = (READ_ONLY, "57P", "08", "28", "3D", "3F")
# What a session was in the middle of, or had prepared, is not what its driver takes it to be.
_OF_THE_SESSION = ("25", "26", "42P05")
# The same may be said to a role or a schema that has been changed since; a caller's own statement gets them, too.
_CHANGED = ("42P01", "42703", "42501")
# SQLite has one code for whatever is wrong with a statement; its message tells these from bad JSON.
_SQLITE_SCHEMA_WORDS = (
    "no such table",
    "no such column",
    "has no column named",
    "ON CONFLICT clause does not match",
)


def is_of_what_is_written(error: Exception) -> bool:
    """Whether the database may take other rows at present, or these by themselves: it took too long, or it said no."""
    code = error.sqlstate if isinstance(error, TransientError) else None
    return code is not None and (code in _OF_A_STATEMENT or not code.startswith(_OF_ALL))


def is_passing(error: DatabaseError) -> bool:
    """Whether the same transaction is likely to get through at once: a deadlock, a conflict, a file in use."""
    return error.sqlstate is not None and error.sqlstate.startswith(_PASSING)


def is_of_a_value(error: DatabaseError) -> bool:
    """Whether a row is refused for what its values are, or could not be sent, rather than by the tables' rules."""
    return error.sqlstate is None or error.sqlstate.startswith(_VALUES)


def from_network(error: BaseException) -> DatabaseError | None:
    """The error for what stops a connection from being made, or cuts it; None for what is none of these.

    It says what it was in words: the name of a class tells an operator nothing.
    """
    if isinstance(error, ssl.SSLError):
        return AccessError("TLS with the database failed; check the certificate, or FOREBAY_TLS_VERIFY")
    if isinstance(error, TimeoutError) and error.errno is None:  # our clock's: the statement was cancelled
        return TransientError(_unreachable("it does not answer in time"), sqlstate=CANCELLED)
    if isinstance(error, OSError | EOFError | asyncpg.InterfaceError):
        return TransientError(_unreachable(_in_words(error)))
    return None


def _unreachable(why: str) -> str:
    return f"the database can't be reached: {why}"


def _in_words(error: BaseException) -> str:
    for kind, words in _NETWORK.items():
        if isinstance(error, kind):
            return words
    if isinstance(error, OSError):
        # Where a name has several addresses the loop puts what each of them said into one text, without a number.
        refused = error.errno is None and "Connect call failed" in str(error)
        return _NETWORK[ConnectionRefusedError] if refused else error.strerror or "connecting failed"
    return "the connection was closed"


def ends_all(sqlstate: str, *, own_statement: bool = False) -> bool:
    """Whether an answer tells that the connections which were opened before it are of no use any more."""
    return sqlstate.startswith(_MOVED) or (not own_statement and sqlstate in _CHANGED)


def ends_session(sqlstate: str) -> bool:
    """Whether an answer tells that this one connection is of no use any more, as it would say the same for ever."""
    return sqlstate.startswith(_OF_THE_SESSION)


def from_sqlstate(sqlstate: str) -> DatabaseError:
    """The error for a SQLSTATE. An unknown one is taken as transient, so that nothing is lost by it."""
    for length in (5, 2):
        if known := _SQLSTATES.get(sqlstate[:length]):
            kind, message = known
            return kind(f"{message} (SQLSTATE {sqlstate})", sqlstate=sqlstate)
    return TransientError(f"the database reports SQLSTATE {sqlstate}", sqlstate=sqlstate)


def from_sqlite(code: str, message: str) -> DatabaseError:
    """The error for a SQLite result code's name; `message` is SQLite's and only looked at."""
    if code == "SQLITE_ERROR":
        if any(words in message for words in _SQLITE_SCHEMA_WORDS):
            return SchemaError(f"a table or column is missing; {_MIGRATE}", sqlstate=code)
        return RowError("SQLite can't read the row", sqlstate=code)
    name = code
    while name:
        if known := _SQLITE_CODES.get(name):
            kind, said = known
            return kind(f"{said} ({code})", sqlstate=code)
        name = name.rpartition("_")[0]
    return TransientError(f"SQLite reports {code}", sqlstate=code)
