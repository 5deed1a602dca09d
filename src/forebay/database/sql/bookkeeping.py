"""What forebay notes for itself: checkpoints of journals, and contents that are to be deleted."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import sqlalchemy as sa

from forebay.database.sql.dialect import Sql
from forebay.database.sql.statement import Compiler, Statement, text_parameter
from forebay.model.schema import checkpoints, elements, garbage


class Bookkeeping(Compiler):
    """Statements on forebay's own tables."""

    @cached_property
    def checkpoint(self) -> Statement:
        """Note that the journal `journal_id` is in the database up to `applied_seq`; no row when it was already."""
        return self._compile(note_checkpoint(self._sql))

    @cached_property
    def applied_seq(self) -> Statement:
        """Up to where the journal `journal_id` is in the database."""
        mine = checkpoints.c.journal_id == text_parameter("journal_id")
        return self._compile(
            sa.select(self._sql.result(self._sql.object({"applied_seq": checkpoints.c.applied_seq}))).where(
                mine
            )
        )

    @cached_property
    def forget_journal(self) -> Statement:
        """The journal `journal_id` is gone, and its checkpoint with it."""
        deleted = sa.delete(checkpoints).where(checkpoints.c.journal_id == text_parameter("journal_id"))
        return self._compile(deleted)

    @cached_property
    def garbage(self) -> Statement:
        """The object keys of contents that are to be deleted, at most `first`, as a JSON array."""
        found = sa.select(garbage.c.object_key).limit(sa.bindparam("first", type_=sa.Integer()))
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def contents(self) -> Statement:
        """The object keys that those of `elements` name, a JSON array of objects with ids, as a JSON array."""
        ids = sa.select(self._sql.source(elements).c.id)
        found = sa.select(elements.c.objectKey).where(self._sql.among(elements.c.id, ids))
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def forget_garbage(self) -> Statement:
        """The content of `object_key` is deleted."""
        return self._compile(sa.delete(garbage).where(garbage.c.object_key == text_parameter("object_key")))


def note_checkpoint(sql: Sql) -> Any:
    """The upsert of a journal's checkpoint; it returns no row where that is as far already."""
    insert = sql.insert(checkpoints).values(
        journal_id=text_parameter("journal_id"),
        applied_seq=sa.bindparam("applied_seq", type_=sa.BigInteger()),
    )
    # A statement that was given up may still arrive, when it has been repeated and newer ones are in.
    return insert.on_conflict_do_update(
        index_elements=["journal_id"],
        set_={"applied_seq": insert.excluded.applied_seq},
        where=checkpoints.c.applied_seq < insert.excluded.applied_seq,
    ).returning(checkpoints.c.applied_seq)
