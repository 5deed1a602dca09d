"""Which error is which, and how long to wait."""

from __future__ import annotations

import random

import pytest
from typing_extensions import override

from forebay.database.error_codes import from_sqlite, from_sqlstate
from forebay.errors import (
    AccessError,
    DatabaseError,
    RowError,
    SchemaError,
    StatementError,
    TransientError,
)
from forebay.primitives.backoff import Backoff


@pytest.mark.parametrize(
    ("kind", "sqlstates"),
    [
        (TransientError, "08000 08006 25006 40001 40P01 53300 55P03 57014 57P01 58030 XX000 0A000 ZZZZZ"),
        (RowError, "21000 22001 22021 22P02 22P05 23502 23503 23505 23514 54000 P0001"),
        (SchemaError, "42703 42P01 42804 42P10 3F000"),
        (AccessError, "28000 28P01 3D000 42501"),
        (StatementError, "42601 42883"),
    ],
)
def test_a_sqlstate_is_of_its_kind(kind: type[DatabaseError], sqlstates: str) -> None:
    for sqlstate in sqlstates.split():
        error = from_sqlstate(sqlstate)
        assert (type(error), error.sqlstate) == (kind, sqlstate)
        assert sqlstate in str(error)


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (
            TransientError,
            "SQLITE_BUSY SQLITE_BUSY_SNAPSHOT SQLITE_LOCKED SQLITE_FULL SQLITE_IOERR_WRITE SQLITE_NEW",
        ),
        (
            RowError,
            "SQLITE_CONSTRAINT SQLITE_CONSTRAINT_NOTNULL SQLITE_CONSTRAINT_UNIQUE SQLITE_MISMATCH SQLITE_TOOBIG",
        ),
        (AccessError, "SQLITE_CANTOPEN SQLITE_CANTOPEN_ISDIR SQLITE_READONLY SQLITE_NOTADB SQLITE_CORRUPT"),
    ],
)
def test_a_sqlite_code_is_of_its_kind(kind: type[DatabaseError], codes: str) -> None:
    for code in codes.split():
        error = from_sqlite(code, "secret")
        assert type(error) is kind
        assert code in str(error)
        assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("no such table: steps", SchemaError),
        ("no such column: modes", SchemaError),
        ("table steps has no column named modes", SchemaError),
        ("malformed JSON", RowError),
    ],
)
def test_sqlites_one_code_for_everything_is_told_apart(message: str, kind: type[DatabaseError]) -> None:
    assert type(from_sqlite("SQLITE_ERROR", message)) is kind


@pytest.mark.parametrize("sqlstate", ["42P01", "42703"])
def test_a_wrong_schema_names_the_command(sqlstate: str) -> None:
    assert "forebay migrate" in str(from_sqlstate(sqlstate))


def test_waits_double_up_to_the_cap_and_are_drawn_from_zero() -> None:
    class Highest(random.Random):
        @override
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    backoff = Backoff(base=0.5, cap=3, rng=Highest())
    assert [backoff.next_delay() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    backoff.reset()
    assert backoff.next_delay() == 0.5


def test_a_long_outage_does_not_overflow() -> None:
    backoff = Backoff()
    backoff.attempts = 100_000
    assert 0 <= backoff.next_delay() <= 5
