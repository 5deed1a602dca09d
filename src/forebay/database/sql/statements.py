"""Every statement that forebay runs: each is compiled once, and what comes from outside is always a parameter."""

from __future__ import annotations

from functools import cache

from sqlalchemy.engine import Dialect

from forebay.database.sql.bookkeeping import Bookkeeping
from forebay.database.sql.claims import Claims
from forebay.database.sql.deleted_users import DeletedUsers
from forebay.database.sql.deletes import Deletes
from forebay.database.sql.reads import Reads
from forebay.database.sql.step_threads import StepThreads
from forebay.database.sql.upserts import Upserts
from forebay.model import schema


class Statements(Upserts, Claims, StepThreads, Deletes, DeletedUsers, Bookkeeping, Reads):
    """All of them, in one database's SQL."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        # One Statements lives as long as its store, and compiles each of these once.
        self.batch = cache(self._batch)
        self.page = cache(self._page)
        self.upsert = cache(self._one_table)
        self.delete = cache(self._delete)
        self.undone = cache(self._undone)
        self.left_out = cache(self._left_out)
        self.stored_rows = cache(self._stored_rows)

    def compile_writes(self) -> None:
        """Compile what a batch needs, which takes tens of milliseconds. In any thread."""
        for partial in (False, True):
            if self._dialect.name == "postgresql":
                for contents in (False, True):
                    self.batch(partial=partial, late=False, checkpoint=True, contents=contents)
            else:
                for table in schema.WRITE_ORDER:
                    self.upsert(table.name, partial=partial, late=False)


def statements_of(dialect: Dialect) -> Statements:
    """Those of a database's kind; they are compiled once a process, as their SQL depends on nothing else."""
    known = _STATEMENTS.get(dialect.name)
    return known or _STATEMENTS.setdefault(dialect.name, Statements(dialect))


_STATEMENTS: dict[str, Statements] = {}
