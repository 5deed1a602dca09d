"""What writes rows: a batch's tables, and a user.

A batch is one JSON document a table, and the database is its parser.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.batch_parameters import MUST_HAVE, NOW
from forebay.database.sql.bookkeeping import step_checkpoint
from forebay.database.sql.dialect import Expression
from forebay.database.sql.statement import Compiler, Statement, id_parameter, text_parameter
from forebay.model import schema
from forebay.model.schema import WRITTEN_AT, Merge, steps, threads, tombstones, users


class Upserts(Compiler):
    """Statements that insert rows, or change those that are there."""

    def _batch(self, *, partial: bool, late: bool, checkpoint: bool) -> Statement:
        """All tables' upserts as one data-modifying statement: one round trip, and atomic by itself.

        `late`: beneath what is newer; `checkpoint`: with the journal's, and not at all where that stands elsewhere;
        where it is taken, a row is null. The others are the ids of those threads that were deleted before, whose
        rows it leaves out. Foreign keys are checked at its end, so the order of its parts does not matter.
        PostgreSQL only.
        """
        named = self._sql.source(threads)
        # Each thread of the batch has a row there, if only its stub.
        dead = (
            sa.select(tombstones.c.thread_id)
            .where(self._sql.among(tombstones.c.thread_id, sa.select(named.c["id"])))
            .cte("dead")
            .prefix_with("MATERIALIZED")
        )
        first = step_checkpoint(self._sql).cte("w_checkpoint") if checkpoint else None
        parts = [
            self._upsert(table, partial, late, dead, first).cte(f"w_{table.name}")
            for table in schema.WRITE_ORDER
        ]
        found: Any = sa.select(sa.cast(dead.c.thread_id, sa.Text()))
        if first is not None:
            found = sa.union_all(found, sa.select(sa.cast(sa.null(), sa.Text())).select_from(first))
        return self._compile(found.add_cte(*parts))

    @cached_property
    def dead_threads(self) -> Statement:
        """Which of `ids`, a JSON array, are threads that were deleted. SQLite only."""
        ids = sa.func.json_each(text_parameter("ids")).table_valued("value")
        return self._compile(
            sa.select(tombstones.c.thread_id).where(tombstones.c.thread_id.in_(sa.select(ids.c.value)))
        )

    def _one_table(self, table: str, *, partial: bool, late: bool) -> Statement:
        """One table's upserts, with `late` beneath what is newer."""
        return self._compile(self._upsert(schema.TABLES[table], partial, late))

    def _upsert(
        self,
        table: sa.Table,
        partial: bool,
        late: bool,
        dead: sa.CTE | None = None,
        checkpoint: sa.CTE | None = None,
    ) -> Any:
        source = self._sql.source(table)
        selected = {column.name: self._proposed(column, source, partial) for column in table.columns}
        rows: FromClause = source
        if partial:
            rows = source.outerjoin(_stored(table), _stored(table).c["id"] == source.c["id"])
        # SQLite reads "ON" after a bare FROM as a join's; a condition keeps the two apart.
        wanted: Expression = sa.literal_column("1") == sa.literal_column("1")
        if dead is not None:
            thread_id = source.c["id" if table is threads else "threadId"]
            wanted = ~sa.exists().where(dead.c.thread_id == thread_id)
        if checkpoint is not None:
            # Not EXISTS, which the planner would join with.
            wanted &= sa.select(checkpoint.c.applied_seq).scalar_subquery().is_not(None)
        select = sa.select(*selected.values()).select_from(rows).where(wanted)
        insert = self._sql.insert(table).from_select(list(selected), select)
        merge = self._merged_late if late else self._merged
        merged = {
            column.name: self._given_only(column, merge(column, insert.excluded), partial)
            for column in table.columns
            if column.name != "id"
        }
        return insert.on_conflict_do_update(index_elements=["id"], set_=merged)

    def _proposed(self, column: sa.Column[Any], source: FromClause, partial: bool) -> Expression:
        """What a row brings for a column, or what it must have instead."""
        if column is threads.c.userIdentifier:
            owner = sa.select(users.c.identifier).where(users.c.id == source.c["userId"])
            return sa.func.coalesce(source.c[column.name], owner.scalar_subquery())
        given: Expression = source.c[column.name]
        if column is threads.c.metadata:
            return sa.func.coalesce(given, self._sql.empty_object())
        if not partial or column.name not in MUST_HAVE[column.table.name] or column.name == "id":
            return given
        choices = [given, _stored(column.table).c[column.name]]
        default = schema.default_of(column)
        if default is schema.NOW:
            choices.append(sa.bindparam(NOW, type_=sa.Text()))
        elif default is not None:
            choices.append(self._sql.constant(default))
        return sa.func.coalesce(*choices)

    def _given_only(self, column: sa.Column[Any], merged: Expression, partial: bool) -> Expression:
        """A default is for a new row: it does not change one that another writer has made in the meantime."""
        if not partial or column.name not in MUST_HAVE[column.table.name]:
            return merged
        lacks = self._sql.lacks(column)
        return merged if lacks is None else sa.case((lacks, column), else_=merged)

    def _merged(self, column: sa.Column[Any], proposed: Any) -> Expression:
        """What stays when the row is there already."""
        excluded = proposed[column.name]
        if column is steps.c.metadata:
            return self._sql.keep_star(column, excluded)
        rule = schema.merge_of(column)
        if rule is Merge.FIRST:
            return sa.func.coalesce(column, excluded)
        if rule is Merge.MAX:
            return self._sql.greatest(column, excluded)
        if rule is Merge.KEYS:
            return self._sql.merge_keys(column, excluded, removing=column is threads.c.metadata)
        return sa.func.coalesce(excluded, column)

    def _merged_late(self, column: sa.Column[Any], proposed: Any) -> Expression:
        """What stays when the row is there already, and may be newer than what comes."""
        merged = self._merged(column, proposed)
        rule = schema.merge_of(column)
        if rule in (Merge.FIRST, Merge.MAX):
            return merged
        excluded: Expression = proposed[column.name]
        beneath: Expression = sa.func.coalesce(column, excluded)
        if rule is Merge.KEYS:
            beneath = self._sql.merge_keys(excluded, column, removing=False)
        stored_is_newer = column.table.c[WRITTEN_AT] > proposed[WRITTEN_AT]
        return sa.case((stored_is_newer, beneath), else_=merged)

    @cached_property
    def create_user(self) -> Statement:
        """Insert a user or replace its metadata; returns the stored user."""
        insert = self._sql.insert(users).values(
            id=id_parameter("id"),
            identifier=text_parameter("identifier"),
            metadata=self._sql.json_parameter("metadata"),
            createdAt=text_parameter("createdAt"),
        )
        merged = insert.on_conflict_do_update(
            index_elements=["identifier"], set_={"metadata": insert.excluded.metadata}
        )
        return self._compile(merged.returning(self._sql.result(self._document(users))))


@cache
def _stored(table: sa.Table) -> FromClause:
    return table.alias("stored")
