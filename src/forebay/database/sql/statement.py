"""A statement as a driver takes it, and what compiles one from SQLAlchemy's expressions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from forebay.database.sql.dialect import Expression, Sql
from forebay.database.sql.postgres import PostgresSql
from forebay.database.sql.sqlite import SqliteSql
from forebay.model.ordering import in_order
from forebay.model.schema import NOTES, SENT_AT, WRITTEN_AT, checkpoints, threads


@dataclass(frozen=True, slots=True)
class Inner:
    """What is in a statement's further rows: from the second column on those of `names`, some JSON (`encoded`).

    They are put into order here: the database would copy each row whole to sort them.
    Columns that are hardly ever set cost as much as others to send and to read. They come as one, an object of those
    of `seldom`, null where none of them is set. `of` names the key that holds the first document's id.
    """

    key: str
    of: str
    names: tuple[str, ...]
    encoded: tuple[str, ...]
    seldom: tuple[str, ...]

    def documents(self, owner: str, rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
        """The rows as documents, in their order."""
        found = []
        blank: dict[str, Any] = {self.of: owner, **dict.fromkeys(self.seldom)}
        for row in rows:
            document = blank.copy()
            document.update(zip(self.names, row[1:], strict=True))
            seldom = document.pop(SELDOM)
            if seldom is not None:
                document.update(orjson.loads(seldom))
            for name in self.encoded:
                if type(document[name]) is str:
                    document[name] = orjson.loads(document[name])
            found.append(document)
        return steps_in_order(found)


def steps_in_order(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A thread's steps as they are shown, without the note that tells their order."""
    ordered = in_order(found)
    for document in ordered:
        del document[SENT_AT]
    return ordered


SELDOM = "seldom"
BOOKMARKS = "bookmarks"

# A standby's rows, if it has all of the bookmarks: one statement sees one snapshot. Each row ends with whether it has;
# null where the server is no standby, which may have gone ways of its own. A row of nulls stands for none.
_ON_STANDBY = f"""
SELECT doc.*, held.has_all FROM (
 SELECT CASE WHEN pg_is_in_recovery() THEN NOT EXISTS (
  SELECT FROM json_to_recordset($%(number)d::json) AS mark(journal_id text, seq bigint, token bigint) WHERE (
   SELECT stands.applied_seq > mark.seq
    OR (stands.applied_seq = mark.seq AND coalesce(stands.token, 0) = mark.token)
   FROM {checkpoints.name} AS stands WHERE stands.journal_id = mark.journal_id
  ) IS NOT TRUE) END AS has_all OFFSET 0
) AS held LEFT JOIN LATERAL (SELECT * FROM (%(sql)s) AS found WHERE held.has_all OFFSET 0) AS doc ON true
"""  # noqa: S608 - the statements are forebay's own, what comes from outside is in parameters


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL in the driver's own form, and the order of its parameters.

    Its first row's first column is a JSON document. `inner` tells what is in further rows, where that column is null.
    `on_standby`: how a standby is asked, with the parameter BOOKMARKS; None for what only the primary may answer.
    `gives`: of which parameters of the statements after it its one row has the values, where it has no document.
    """

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    inner: Inner | None = None
    on_standby: Statement | None = None
    gives: tuple[str, ...] = ()

    def document(self, rows: Sequence[Sequence[Any]]) -> Any:
        """What it returned, parsed; None for nothing."""
        head = next((row for row in rows if row[0] is not None), None)
        if head is None:
            return None
        found = orjson.loads(head[0])
        if self.inner is not None:
            others = (row for row in rows if row is not head)
            found[self.inner.key] = self.inner.documents(found["id"], others)
        return found

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters' values in the statement's order."""
        return tuple(
            self.constants[name] if name in self.constants else parameters[name] for name in self.names
        )


class Compiler:
    """Makes statements of one database's SQL."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._sql: Sql = PostgresSql() if dialect.name == "postgresql" else SqliteSql()

    @property
    def moment(self) -> sa.ColumnElement[Any]:
        """The database's own clock, in microseconds since 1970."""
        return self._sql.moment()

    def _compile(self, statement: sa.sql.ClauseElement, inner: Inner | None = None) -> Statement:
        compiled = statement.compile(dialect=self._dialect, compile_kwargs={"render_postcompile": True})
        assert isinstance(compiled, sa.sql.compiler.SQLCompiler)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return Statement(compiled.string, tuple(compiled.positiontup or ()), constants, inner)

    def _compile_read(self, statement: sa.sql.ClauseElement, inner: Inner | None = None) -> Statement:
        """A read that a standby may answer too; only PostgreSQL has one."""
        read = self._compile(statement, inner)
        if self._dialect.name != "postgresql":
            return read
        names = (*read.names, BOOKMARKS)
        on_standby = Statement(
            _ON_STANDBY % {"number": len(names), "sql": read.sql}, names, read.constants, inner
        )
        return replace(read, on_standby=on_standby)

    def _document(self, table: sa.Table) -> Expression:
        return self._sql.object(self._values(table))

    def _values(self, table: sa.Table, leaving_out: tuple[str, ...] = ()) -> dict[str, Expression]:
        return {c.name: self._sql.plain(c) for c in table.columns if c.name not in NOTES.union(leaving_out)}


def sent_at(table: sa.sql.FromClause) -> Expression:
    """When a step or an element was sent, as far as anybody has noted it: those that were written before come first."""
    return sa.func.coalesce(table.c[SENT_AT], table.c[WRITTEN_AT], sa.literal_column("0"))


def text_parameter(name: str) -> sa.BindParameter[Any]:
    """A parameter that holds text."""
    return sa.bindparam(name, type_=sa.Text())


def id_parameter(name: str) -> sa.BindParameter[Any]:
    """A parameter that holds a row's id."""
    return sa.bindparam(name, type_=threads.c.id.type)
