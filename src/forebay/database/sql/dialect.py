"""What PostgreSQL and SQLite say differently, as SQLAlchemy expressions: `postgres` and `sqlite` are its two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from forebay.model.schema import Kind

Expression = ColumnElement[Any]

REMOVED = "removed"  # the parameter that names the keys to take out of threads' metadata, by thread
LACKING = "lacking"  # the parameter that names the columns which a row must have and brings no value for
PASSED_ON = "passed_on"  # the parameter that names the threads whose owner may change
SEEN = "seen"  # the parameter that names the rows which were looked at before something late is written
DISCARDED = "discarded"  # the parameter that names contents which no row of a batch will name any more
NEEDLE = "needle"  # the parameter that a search looks for
# The row that an upsert met. As a column of the table, a subquery would take it for one of its own.
STORED_THREAD_ID: Expression = sa.literal_column("threads.id")


class Sql(Protocol):
    """What the two databases say differently."""

    def source(self, table: sa.Table) -> FromClause:
        """The rows of the table's JSON document, which is the parameter named like the table."""

    def given(self, name: str) -> FromClause:
        """The texts of a JSON array, which is the parameter of that name, as the column `value`."""

    def digest(self, text: Expression) -> Expression:
        """The SHA-256 of a text's UTF-8, in hexadecimal."""

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT."""

    def constant(self, value: Any) -> Expression:
        """A default of the schema's own, as a literal."""

    def empty_object(self) -> Expression:
        """`{}` as the columns of objects hold it."""

    def json_parameter(self, name: str) -> Expression:
        """A parameter that holds JSON text."""

    def greatest(self, stored: Expression, given: Expression) -> Expression:
        """The greater of two, or the one that is not null."""

    def least(self, stored: Expression, given: Expression) -> Expression:
        """The smaller of two, or the one that is not null."""

    def merge_keys(self, stored: Expression, given: Expression, *, removing: bool) -> Expression:
        """The stored object with the given one's keys laid over it, less the removed ones."""

    def keep_star(self, stored: Expression, given: Expression) -> Expression:
        """A step's metadata, the given over the stored one; a favourite stays one unless told otherwise."""

    def lacks(self, column: sa.Column[Any]) -> Expression | None:
        """Whether the row that comes has only a default there. None where no other writer can have come between."""

    def is_seen(self, table: sa.Table) -> Expression | None:
        """Whether the row that an upsert met was looked at before; fails where it was not. None where all are."""

    def held(self, found: sa.Select[*tuple[Any, ...]]) -> Any:
        """The rows found, held until the transaction ends."""

    def moment_of(self, moments: Expression, name: str) -> Expression:
        """A member of a JSON object of moments, or null."""

    def as_moment(self, number: Expression) -> Expression:
        """A number as a member of such an object."""

    def key_moments(
        self,
        stored: Expression,
        given: Expression,
        known: Expression,
        noted: Expression,
        written_at: Expression,
    ) -> Expression:
        """The moments of an object's keys when another is laid over it, `known` and `noted` being theirs; or null.

        Of those that are neither, `written_at` is, unless that is null.
        """

    def object_of_moments(self, moments: Mapping[str, Expression]) -> Expression:
        """A JSON object of those that are not null; null for none."""

    def plain(self, column: sa.Column[Any]) -> Expression:
        """A column as it goes into a JSON object."""

    def nested(self, document: Expression) -> Expression:
        """A JSON document as it goes into another."""

    def object(self, values: Mapping[str, Expression]) -> Expression:
        """A JSON object."""

    def array(self, found: sa.Select[Any], *, newest_first: bool = False) -> Expression:
        """The column `doc` of the rows found, as a JSON array, ordered by their `createdAt` and `id`."""

    def texts(self, found: sa.Select[Any]) -> Expression:
        """A JSON array of the one column that the select finds."""

    def result(self, document: Expression) -> Expression:
        """A JSON document as the statement returns it: text."""

    def size(self, value: Expression, kind: Kind) -> Expression:
        """How many bytes a text, list or object takes in an answer, about, for next to nothing; null for null."""

    def sortable(self, activity: Expression) -> Expression:
        """Text that compares by code point."""

    def contains(self, column: Expression) -> Expression:
        """Whether the text holds the needle, in whatever case."""

    def needle(self, search: str) -> str:
        """What to pass as the needle."""

    def is_passed_on(self) -> Expression:
        """Whether the application passes the thread that an upsert met on to another owner."""

    def locked(self, thread: sa.Select[Any]) -> Any | None:
        """What holds back who writes into this thread, and makes them look again. None where all wait anyway."""

    def names_held(self, given: FromClause) -> Any | None:
        """What holds back who wants one of the same names, until the transaction ends. None where all wait anyway."""

    def unmoved(self) -> Expression | None:
        """Whether the thread that an upsert met is as the statement saw it when it began; fails where it is not."""

    def arrived(self) -> Expression:
        """1 for a thread's row that was written; fails where it was there when the statement began, and had gone."""

    def patience(self) -> Expression | None:
        """Always true. From then on the transaction waits only briefly for a lock. None where a lock is the file's."""

    def among(self, column: sa.Column[Any], found: sa.SelectBase) -> Expression:
        """Whether the column is one of what the select finds, which is few."""

    def is_favorite(self) -> Expression:
        """Whether a step is marked as a favourite."""

    def moment(self) -> Expression:
        """The database's own clock, in microseconds since 1970."""


# What PostgreSQL's error says when a thread has changed between a statement's beginning and its lock.
MOVED = "forebay_moved"


# How long a batch waits for a row that somebody holds: then that thread waits, and not the others. Milliseconds.
LOCK_PATIENCE_MS = 500


def literal(value: Any) -> Expression:
    """A value of the schema's own, written into the statement."""
    if isinstance(value, bool):
        return sa.true() if value else sa.false()
    assert isinstance(value, int | str)
    assert "'" not in str(value)
    return sa.literal_column(f"'{value}'" if isinstance(value, str) else str(value))


def pairs(values: Mapping[str, Expression]) -> list[Expression]:
    """Names and values in turn, as functions that make an object take them."""
    return [part for name, value in values.items() for part in (sa.literal_column(f"'{name}'"), value)]
