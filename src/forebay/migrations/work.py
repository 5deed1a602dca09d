"""Doing what is to do, through Alembic's operations: against a database, or as SQL text."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.schema import CreateTable

from forebay.errors import SchemaError
from forebay.migrations.activity import fill, fill_statement
from forebay.migrations.todo import OLD_COLUMN, NewIndex, Todo, repeated_identifiers

logger = logging.getLogger("forebay.migrations")

# While an ALTER waits for its lock, every other statement on the table waits behind it. So it gives up soon.
LOCK_TIMEOUT_MS = 1000
_PARKED = "forebayOldDisableFeedback"


@dataclass
class Work:
    """One upgrade: what a revision gets. `lines` tells, in order, what is in the database for good."""

    op: Operations
    todo: Todo
    lines: list[str] = field(default_factory=list)

    def bring_to_schema(self) -> None:
        """Do everything in `todo`: the tables and columns in a transaction, then the indexes, then the rows.

        Tables that may be in use get their indexes online, each in a transaction of its own. If that is
        interrupted, the revision is not recorded, and the next run goes on from where this one was.
        """
        self._limit_lock_waits()
        done = [*self._create_tables(), *self._add_columns(), *self._mend_columns(), *self.todo.warnings]
        done += [self._create_index(index) for index in self.todo.indexes if not index.online]
        if not (self.is_postgres and self.todo.in_use):
            if self.todo.fill:
                done.append(self._fill())
            self._say(*done)
            return
        with self.op.get_context().autocommit_block():
            self._say(*done)
            for index in self.todo.indexes:
                if index.online:
                    self._say(self._create_index(index))
            self.fill_activity()

    def fill_activity(self) -> None:
        """Fill `threads."updatedAt"` if need be. On PostgreSQL the connection is in autocommit."""
        if not self.todo.fill:
            return
        if self.is_postgres:
            self.op.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        self._say(self._fill())

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

    def _limit_lock_waits(self) -> None:
        if self.is_postgres and self.todo.in_use:
            self.op.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")

    def _create_tables(self) -> list[str]:
        for table in self.todo.tables:
            self.op.execute(CreateTable(table))
        return [f"created the table {table.name}" for table in self.todo.tables]

    def _add_columns(self) -> list[str]:
        lines = []
        for column in self.todo.columns:
            table = column.table.name
            self.op.add_column(table, sa.Column(column.name, column.type))
            lines.append(f'added the column {table}."{column.name}"')
        return lines

    def _mend_columns(self) -> list[str]:
        lines = []
        if self.todo.default_old_column:
            self._default_old_column()
            lines.append(f'gave steps."{OLD_COLUMN}" the default false')
        if self.todo.recollate:
            self.op.execute('ALTER TABLE threads ALTER COLUMN "updatedAt" TYPE TEXT COLLATE "C"')
            lines.append('made threads."updatedAt" sort by code point')
        return lines

    def _default_old_column(self) -> None:
        if self.is_postgres:
            self.op.alter_column("steps", OLD_COLUMN, server_default=sa.false())
            return
        # SQLite can't give a column a default. Copying the values into a column that has one leaves the
        # table's triggers, indexes and constraints alone, which a copy of the whole table would not.
        self.op.execute(f'ALTER TABLE steps RENAME COLUMN "{OLD_COLUMN}" TO "{_PARKED}"')
        self.op.execute(f'ALTER TABLE steps ADD COLUMN "{OLD_COLUMN}" BOOLEAN NOT NULL DEFAULT 0')
        self.op.execute(f'UPDATE steps SET "{OLD_COLUMN}" = "{_PARKED}"')  # noqa: S608 - constants
        self.op.execute(f'ALTER TABLE steps DROP COLUMN "{_PARKED}"')

    def _create_index(self, index: NewIndex) -> str:
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
        return f"{'rebuilt' if index.unfinished else 'created'} the index {index.name}"

    def _drop_index(self, index: NewIndex) -> None:
        self.op.drop_index(index.name, index.table, if_exists=True, postgresql_concurrently=True)

    def _fill(self) -> str:
        if self._as_text:
            if self.is_postgres:
                self._comment("the upgrade does this in pages, each in a transaction of its own")
            self.op.execute(fill_statement(self.op.get_context().dialect))
            return ""
        count = fill(self.op.get_bind())
        return f'filled "updatedAt" of {count} thread{"s" * (count != 1)}'
