"""The tables: those that Chainlit documents for its SQLAlchemy layer, plus what forebay adds to them.

Each column says its type for both databases and, in `info`, how two writes of one row meet:

- `Merge.LAST`: the newer value stays; a missing one leaves the stored one alone.
- `Merge.FIRST`: the older value stays.
- `Merge.MAX`, `Merge.MIN`: the greater, the smaller value stays.
- `Merge.KEYS`: an object whose keys are merged one by one.

`default` in `info` is what a row gets when it is first written without a value for a column that must
have one; it never overwrites what is stored. Statements, folding and migrations are built from here.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles


class Merge(Enum):
    """How a column of a newer write meets the same column of an older one."""

    LAST = "last"
    FIRST = "first"
    MAX = "max"
    MIN = "min"
    KEYS = "keys"


class Kind(Enum):
    """What a column holds, as the cleaning of incoming values sees it."""

    ID = "id"
    TEXT = "text"
    BOOL = "bool"
    INT = "int"
    OBJECT = "object"
    LIST = "list"


_ID: sa.types.TypeEngine[Any] = sa.Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
_OBJECT: sa.types.TypeEngine[Any] = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_LIST: sa.types.TypeEngine[Any] = sa.JSON().with_variant(postgresql.ARRAY(sa.Text()), "postgresql")
# Keyset pages compare this column in the index and in Python, so it must sort by code point.
_SORTED_TEXT: sa.types.TypeEngine[Any] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

_TYPES: dict[Kind, sa.types.TypeEngine[Any]] = {
    Kind.TEXT: sa.Text(),
    Kind.BOOL: sa.Boolean(),
    Kind.INT: sa.Integer(),
    Kind.OBJECT: _OBJECT,
    Kind.LIST: _LIST,
}

metadata = sa.MetaData()


def _id(name: str = "id", *constraints: sa.ForeignKey, nullable: bool = True) -> sa.Column[Any]:
    info = {"kind": Kind.ID, "merge": Merge.LAST}
    return sa.Column(name, _ID, *constraints, nullable=nullable, primary_key=name == "id", info=info)


def _column(
    name: str,
    kind: Kind = Kind.TEXT,
    *,
    merge: Merge = Merge.LAST,
    nullable: bool = True,
    default: Any = None,
) -> sa.Column[Any]:
    info = {"kind": kind, "merge": merge, "default": default}
    return sa.Column(name, _TYPES[kind], nullable=nullable, info=info)


def _in_thread() -> sa.ForeignKey:
    return sa.ForeignKey("threads.id", ondelete="CASCADE")


# Where keys that no column is for are kept, so that a release of Chainlit that adds one loses nothing.
EXTRA = "forebayExtra"
NOW = object()  # a default: the time at which the change was made
# When the newest change of a row was made, in microseconds since 1970: what comes late can't overwrite it.
WRITTEN_AT = "forebayWrittenAt"
# When a step or an element was first sent, in microseconds since 1970: those of one moment, and a message's elements,
# are shown in this order.
SENT_AT = "forebaySentAt"
# Of a row's columns, and of the keys of an object that is merged by key, those that were written at another moment
# than the newest change was made, and which: `{"name": 17, "metadata": {"a key": 18}}`. Also of keys that were removed.
MOMENTS = "forebayMoments"
# What forebay notes of a row, and no reader of the row gets.
NOTES = frozenset({WRITTEN_AT, SENT_AT, MOMENTS})
# When somebody made a row, rather than changed it: what was deleted before that may be there again. It comes with a
# change and is in no table. A row that does not say was made when it was written; a thread was not.
MADE_AT = "forebayMadeAt"
# Of a row in a thread: when whoever wrote it began. A thread that was deleted before that is made anew.
THREAD_MADE_AT = "forebayThreadMadeAt"
# A change of a thread that may give it another owner; it too is in no table.
PASSES_ON = "forebayPassesOn"


# A change of a thread that nobody may own yet: whose it is then. It comes with the change and is in no table.
CLAIM = "forebayClaim"


# Of an element: where contents are that it had before, in changes that were folded into this one. In no table either.
REPLACED = "forebayReplaced"


# Who a thread's `userId` is, as a claim: the user's row may be gone when the thread comes. In no table either.
OWNER = "forebayOwner"


def _written_at() -> sa.Column[Any]:
    return sa.Column(WRITTEN_AT, sa.BigInteger(), info={"kind": Kind.INT, "merge": Merge.LAST})


def _sent_at() -> sa.Column[Any]:
    return sa.Column(SENT_AT, sa.BigInteger(), info={"kind": Kind.INT, "merge": Merge.MIN})


def _moments() -> sa.Column[Any]:
    return sa.Column(MOMENTS, _OBJECT, info={"kind": Kind.OBJECT, "merge": Merge.LAST})


users = sa.Table(
    "users",
    metadata,
    _id(nullable=False),
    sa.Column("identifier", sa.Text(), nullable=False, unique=True, info={"kind": Kind.TEXT}),
    _column("metadata", Kind.OBJECT, nullable=False),
    _column("createdAt", merge=Merge.FIRST),
)

threads = sa.Table(
    "threads",
    metadata,
    _id(nullable=False),
    _column("createdAt", merge=Merge.FIRST, default=NOW),
    _column("name"),
    _id("userId", sa.ForeignKey("users.id", ondelete="CASCADE")),
    _column("userIdentifier"),
    _column("tags", Kind.LIST),
    _column("metadata", Kind.OBJECT, merge=Merge.KEYS),
    # The newest createdAt of the thread's steps; null until forebay has written one.
    sa.Column("updatedAt", _SORTED_TEXT, info={"kind": Kind.TEXT, "merge": Merge.MAX}),
    _written_at(),
    _moments(),
)

steps = sa.Table(
    "steps",
    metadata,
    _id(nullable=False),
    _column("name", nullable=False, default=""),
    _column("type", nullable=False, default="undefined"),
    _id("threadId", _in_thread(), nullable=False),
    _id("parentId"),
    _column("streaming", Kind.BOOL, nullable=False, default=False),
    _column("waitForAnswer", Kind.BOOL),
    _column("isError", Kind.BOOL),
    _column("metadata", Kind.OBJECT),
    _column("tags", Kind.LIST),
    _column("input"),
    _column("output"),
    _column("createdAt", default=NOW),
    _column("command"),
    _column("start"),
    _column("end"),
    _column("generation", Kind.OBJECT),
    _column("showInput"),
    _column("language"),
    _column("indent", Kind.INT),
    _column("defaultOpen", Kind.BOOL),
    _column("autoCollapse", Kind.BOOL),
    _column("modes", Kind.OBJECT),
    _column(EXTRA, Kind.OBJECT, merge=Merge.KEYS),
    _sent_at(),
    _written_at(),
    _moments(),
)

elements = sa.Table(
    "elements",
    metadata,
    _id(nullable=False),
    _id("threadId", _in_thread()),
    _column("type"),
    _column("url"),
    _column("chainlitKey"),
    _column("name", nullable=False, default=""),
    _column("display"),
    _column("objectKey"),
    _column("size"),
    _column("page", Kind.INT),
    _column("language"),
    _id("forId"),
    _column("mime"),
    _column("props", Kind.OBJECT),
    _column("autoPlay", Kind.BOOL),
    _column("playerConfig", Kind.OBJECT),
    _column(EXTRA, Kind.OBJECT, merge=Merge.KEYS),
    _sent_at(),
    _written_at(),
    _moments(),
)

feedbacks = sa.Table(
    "feedbacks",
    metadata,
    _id(nullable=False),
    _id("forId", nullable=False),
    _id("threadId", _in_thread(), nullable=False),
    _column("value", Kind.INT, nullable=False, default=0),
    _column("comment"),
    _written_at(),  # also tells the newest of several feedbacks on one step
)

# How far each writer's journal is in the database; written in the batch's own transaction, and cleared by age:
# a statement that comes late must find it.
checkpoints = sa.Table(
    "forebay_checkpoints",
    metadata,
    sa.Column("journal_id", sa.Text(), primary_key=True),
    sa.Column("applied_seq", sa.BigInteger(), nullable=False),
    sa.Column("token", sa.BigInteger()),  # of the statement that came last; null: a release that had none
    sa.Column("noted_at", sa.BigInteger()),  # by the database's clock, in microseconds since 1970
)


class Drawn(sa.ColumnElement[str]):
    """32 hexadecimal digits that the database draws; `gen_random_uuid` is younger than some servers."""

    inherit_cache = True
    type = sa.Text()


@compiles(Drawn, "postgresql")
def _drawn_by_postgres(_element: Drawn, _compiler: Any, **_named: Any) -> str:
    return "md5(random()::text || clock_timestamp()::text || random()::text)"


@compiles(Drawn, "sqlite")
def _drawn_by_sqlite(_element: Drawn, _compiler: Any, **_named: Any) -> str:
    return "lower(hex(randomblob(16)))"


# The database's own id, in one row: a URL may lead elsewhere tomorrow, and one database has several.
database = sa.Table(
    "forebay_database",
    metadata,
    sa.Column("row", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text(), nullable=False),
)

# The threads that are deleted: no write brings them back, but for one by who makes the thread anew. Releases before
# this one know no other table of what is deleted. `deleted_at` is on the database's clock, for their age.
tombstones = sa.Table(
    "forebay_tombstones",
    metadata,
    sa.Column("thread_id", _ID, primary_key=True),
    sa.Column("deleted_at", sa.BigInteger(), nullable=False),  # microseconds since 1970
)

# What was deleted, and the moment of that: what was written before stays out. For threads it goes on to say so when
# the thread is made anew. A deleted feedback has a note more, under its step: the older ones that have yet to come
# are deleted with it. `noted_at` is on the database's clock, for its age; both in microseconds since 1970.
RATINGS = "ratings"
deleted = sa.Table(
    "forebay_deleted",
    metadata,
    sa.Column("kind", sa.Text(), primary_key=True),  # the row's table, or RATINGS
    sa.Column("id", _ID, primary_key=True),
    sa.Column("deleted_at", sa.BigInteger(), nullable=False),
    sa.Column("noted_at", sa.BigInteger(), nullable=False),
)

# Contents whose elements are deleted, until the storage has deleted them too. An object's key may be longer than an
# index takes, so a row is known by the key's SHA-256; releases before this one have none, and any other serves as well.
garbage = sa.Table(
    "forebay_garbage",
    metadata,
    sa.Column("key_hash", sa.Text(), primary_key=True, server_default=Drawn()),
    sa.Column("object_key", sa.Text(), nullable=False),
    sa.Column("noted_at", sa.BigInteger()),  # by the database's clock: what is noted again is not forgotten
)

sa.Index("forebay_tombstones_age", tombstones.c.deleted_at)
sa.Index("forebay_deleted_age", deleted.c.noted_at)
sa.Index("forebay_threads_activity", threads.c.userId, threads.c.updatedAt.desc(), threads.c.id.desc())
sa.Index("forebay_steps_thread", steps.c.threadId, steps.c.createdAt)
sa.Index("forebay_steps_parent", steps.c.parentId)
sa.Index("forebay_elements_thread", elements.c.threadId)
sa.Index("forebay_elements_for", elements.c.forId)
# A key may be longer than other indexes of PostgreSQL take.
sa.Index("forebay_elements_key", elements.c.objectKey, postgresql_using="hash")
# The newest feedback of a step is the index's first, however many somebody gives: in the order that reads ask for.
_NEWEST_FIRST = feedbacks.c[WRITTEN_AT].desc()
for _dialect, _order in (("postgresql", _NEWEST_FIRST.nulls_last()), ("sqlite", _NEWEST_FIRST)):
    sa.Index("forebay_feedbacks_newest", feedbacks.c.forId, _order, feedbacks.c.id.desc()).ddl_if(
        dialect=_dialect
    )
sa.Index("forebay_feedbacks_thread", feedbacks.c.threadId)

# Few steps are favourites, so the index holds little and costs other writes nothing. SQLite would evaluate the
# condition on each insert and fail on metadata that is not valid JSON, so there the threads' index serves.
FAVORITE = steps.c.metadata.op("@>")(sa.literal_column("'{\"favorite\": true}'::jsonb"))
sa.Index("forebay_steps_favorite", steps.c.threadId, steps.c.createdAt, postgresql_where=FAVORITE).ddl_if(
    dialect="postgresql"
)

# By table, the column that names the step which a row hangs on.
HANGS_ON = {"steps": "parentId", "elements": "forId", "feedbacks": "forId"}
# The order in which a batch writes its tables: a row's parents come before it.
WRITE_ORDER: tuple[sa.Table, ...] = (threads, steps, elements, feedbacks)
TABLES: dict[str, sa.Table] = {table.name: table for table in (users, *WRITE_ORDER)}


def merge_of(column: sa.Column[Any]) -> Merge:
    """The column's merge rule."""
    rule: Merge = column.info["merge"]
    return rule


def kind_of(column: sa.Column[Any]) -> Kind:
    """What the column holds."""
    kind: Kind = column.info["kind"]
    return kind


def default_of(column: sa.Column[Any]) -> Any:
    """What a new row gets without a value, or None."""
    return column.info.get("default")
