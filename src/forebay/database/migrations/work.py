"""Doing what is to do, through Alembic's operations: against a database, or as SQL text."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.schema import CreateTable

from forebay.database.migrations.activity import fill, fill_statement
from forebay.database.migrations.todo import OLD_COLUMN, NewIndex, Todo, repeated_identifiers
from forebay.errors import SchemaError
from forebay.model.schema import Drawn, database, garbage

logger = logging.getLogger("forebay.migrations")

# While an ALTER waits for its lock, every other statement on the table waits behind it. So it gives up soon.
LOCK_TIMEOUT_MS = 1000
_PARKED = "forebayOldDisableFeedback"
_PARKED_GARBAGE = "forebay_old_garbage"


@dataclass
class Work:
    """One upgrade: what a revision gets. `lines` tells, in order, what is in the database for good."""

    op: Operations
    todo: Todo
    lines: list[str] = field(default_factory=list)

    def bring_to_schema(self) -> None:
        """Do everything in `todo`: the tables and columns, then the indexes, then the rows.

        SQLite and an empty PostgreSQL do it in one transaction. Where writers may be at work, each statement is a
        transaction of its own: one that held the lock of one table while it waits for another's would deadlock
        with them, and it may be a writer that the database then fails. If that is interrupted, the revision is
        not recorded, and the next run goes on from where this one was.
        """
        with self._transactions():
            self._limit_lock_waits()
            self._create_tables()
            self._add_columns()
            self._rekey_garbage()
            self._mend_columns()
            self._say(*self.todo.warnings)
            self._limit_lock_waits(0)  # building an index concurrently waits for others, but none for it
            for index in self.todo.indexes:
                self._create_index(index)
            self.fill_activity()
        self.todo = Todo()  # whatever revision comes next has nothing left to do

    def name_database(self) -> None:
        """Give the database its id, unless it has one, as one that was copied or restored has."""
        named = sa.select(database.c.id).exists()
        # Drawn by the database, so that the plan is the same each time.
        row: tuple[sa.ColumnElement[Any], ...] = (sa.literal_column("1"), Drawn())
        new = sa.select(*row).where(~named)
        self.op.execute(sa.insert(database).from_select(["row", "id"], new))

    def fill_activity(self) -> None:
        """Fill `threads."updatedAt"` if need be. On PostgreSQL the connection is in autocommit."""
        if not self.todo.fill:
            return
        self._limit_lock_waits()
        if self._as_text:
            if self.is_postgres:
                self._comment("the upgrade does this in pages, each in a transaction of its own")
            self.op.execute(fill_statement(self.op.get_context().dialect))
        else:
            count = fill(self.op.get_bind())
            self._say(f'filled "updatedAt" of {count} thread{"s" * (count != 1)}')

    @property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL."""
        return self.op.get_context().dialect.name == "postgresql"

    @property
    def _as_text(self) -> bool:
        return self.op.get_context().as_sql

    def _say(self, *lines: str) -> None:
        for line in lines:
            is_warning = line.startswith("warning: ")
            if not self._as_text:
                self.lines.append(line)
                logger.log(logging.WARNING if is_warning else logging.INFO, "%s", line)
            elif is_warning:
                self._comment(line)

    def _comment(self, line: str) -> None:
        self.op.get_context().impl.static_output(f"-- {line}")

    def _transactions(self) -> AbstractContextManager[None]:
        in_use = self.is_postgres and self.todo.in_use
        return self.op.get_context().autocommit_block() if in_use else nullcontext()

    def _limit_lock_waits(self, milliseconds: int | None = None) -> None:
        if self.is_postgres and self.todo.in_use:
            limit = LOCK_TIMEOUT_MS if milliseconds is None else milliseconds
            self.op.execute(f"SET lock_timeout = {limit}")

    def _create_tables(self) -> None:
        for table in self.todo.tables:
            self.op.execute(CreateTable(table))
            self._say(f"created the table {table.name}")

    def _add_columns(self) -> None:
        for column in self.todo.columns:
            table = column.table.name
            self.op.add_column(table, sa.Column(column.name, column.type))
            self._say(f'added the column {table}."{column.name}"')

    def _rekey_garbage(self) -> None:
        """The rows that are there get any key, as those of releases that go on beside this one do."""
        if not self.todo.rekey_garbage:
            return
        if self.is_postgres:
            self.op.execute(
                "ALTER TABLE forebay_garbage DROP CONSTRAINT forebay_garbage_pkey,"
                f" ADD COLUMN key_hash TEXT NOT NULL DEFAULT {self._compiled(Drawn())},"
                " ADD COLUMN noted_at BIGINT, ADD PRIMARY KEY (key_hash)"
            )
        else:
            self.op.execute(f"ALTER TABLE forebay_garbage RENAME TO {_PARKED_GARBAGE}")
            self.op.execute(CreateTable(garbage))
            kept: sa.Select[Any] = sa.select(sa.column("object_key")).select_from(sa.table(_PARKED_GARBAGE))
            self.op.execute(sa.insert(garbage).from_select(["object_key"], kept, include_defaults=False))
            self.op.execute(f"DROP TABLE {_PARKED_GARBAGE}")
        self._say("keyed forebay_garbage by a hash")

    def _compiled(self, element: sa.sql.ClauseElement) -> str:
        return str(element.compile(dialect=self.op.get_context().dialect))

    def _mend_columns(self) -> None:
        if self.todo.default_old_column:
            self._default_old_column()
            self._say(f'gave steps."{OLD_COLUMN}" the default false')
        if self.todo.recollate:
            self.op.execute('ALTER TABLE threads ALTER COLUMN "updatedAt" TYPE TEXT COLLATE "C"')
            self._say('made threads."updatedAt" sort by code point')

    def _default_old_column(self) -> None:
        if self.is_postgres:
            self.op.alter_column("steps", OLD_COLUMN, server_default=sa.false())
            return
        # SQLite can't give a column a default. Copying the values into a column that has one leaves the
        # table's triggers, indexes and constraints alone, which a copy of the whole table would not.
        self.op.execute(f'ALTER TABLE steps RENAME COLUMN "{OLD_COLUMN}" TO "{_PARKED}"')
        self.op.execute(f'ALTER TABLE steps ADD COLUMN "{OLD_COLUMN}" BOOLEAN NOT NULL DEFAULT 0')
        parked: sa.ColumnClause[Any] = sa.column(_PARKED)
        self.op.execute(sa.update(sa.table("steps", sa.column(OLD_COLUMN))).values({OLD_COLUMN: parked}))
        self.op.execute(f'ALTER TABLE steps DROP COLUMN "{_PARKED}"')

    def _create_index(self, index: NewIndex) -> None:
        if index.unfinished:
            self._drop_index(index)
        options = index.options | {"postgresql_concurrently": index.online}
        columns = list(index.expressions)
        try:
            self.op.create_index(
                index.name, index.table, columns, unique=index.unique, if_not_exists=True, **options
            )
        except sa.exc.DBAPIError as error:
            if index.online:
                with suppress(sa.exc.SQLAlchemyError):  # the next run finds it and drops it first
                    self._drop_index(index)
            if index.unique and isinstance(error, sa.exc.IntegrityError):
                raise SchemaError(repeated_identifiers().removeprefix("- ")) from None
            raise
        self._say(f"{'rebuilt' if index.unfinished else 'created'} the index {index.name}")

    def _drop_index(self, index: NewIndex) -> None:
        self.op.drop_index(index.name, index.table, if_exists=True, postgresql_concurrently=True)
