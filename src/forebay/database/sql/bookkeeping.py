"""What forebay notes for itself: checkpoints of journals, and contents that are to be deleted."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import sqlalchemy as sa

from forebay.database.sql.dialect import Expression, Sql
from forebay.database.sql.statement import Compiler, Statement, id_parameter, text_parameter
from forebay.model.schema import MOMENTS, WRITTEN_AT, checkpoints, elements, garbage


class Bookkeeping(Compiler):
    """Statements on forebay's own tables."""

    @cached_property
    def checkpoint(self) -> Statement:
        """Move the journal `journal_id` on, as `Checkpoint` says; no row where it stands elsewhere."""
        return self._compile(step_checkpoint(self._sql))

    @cached_property
    def position(self) -> Statement:
        """Where the journal `journal_id` stands in the database."""
        mine = checkpoints.c.journal_id == text_parameter("journal_id")
        # The token as text: whoever reads JSON numbers as floats would round it.
        values = {"seq": checkpoints.c.applied_seq, "token": sa.cast(_token(), sa.Text())}
        return self._compile(sa.select(self._sql.result(self._sql.object(values))).where(mine))

    @cached_property
    def clear_checkpoints(self) -> Statement:
        """Journals that nobody has written for `kept_us` microseconds are forgotten."""
        age = self._sql.moment() - checkpoints.c.noted_at
        return self._compile(sa.delete(checkpoints).where(age > _number("kept_us")))

    @cached_property
    def garbage(self) -> Statement:
        """Contents that are to be deleted, at most `first`, by their hashes, from the one after `after` on.

        As a JSON array of texts, each a JSON object with `key_hash`, `object_key` and `noted_at`.
        """
        row = self._sql.object({column.name: column for column in garbage.columns})
        found = sa.select(self._sql.result(row).label("doc"))
        page = found.where(garbage.c.key_hash > text_parameter("after")).order_by(garbage.c.key_hash)
        page = page.limit(sa.bindparam("first", type_=sa.Integer()))
        return self._compile(sa.select(self._sql.result(self._sql.texts(page))))

    @cached_property
    def content(self) -> Statement:
        """Where the content of the element `id` is, and what tells since when: `written_at`, and the `moments`."""
        document = {
            "objectKey": elements.c.objectKey,
            "written_at": sa.func.coalesce(elements.c[WRITTEN_AT], sa.literal_column("0")),
            "moments": self._sql.plain(elements.c[MOMENTS]),
        }
        found = sa.select(self._sql.result(self._sql.object(document)))
        return self._compile(found.where(elements.c.id == id_parameter("id")))

    @cached_property
    def contents(self) -> Statement:
        """Those of `object_keys`, a JSON array, that an element names, as a JSON array."""
        given = self._sql.given("object_keys")
        named = sa.exists(sa.select(elements.c.id).where(elements.c.objectKey == given.c.value))
        return self._compile(
            sa.select(self._sql.result(self._sql.texts(sa.select(given.c.value).where(named))))
        )

    @cached_property
    def readdress(self) -> Statement:
        """The elements that name `object_key` say `url` of it."""
        named = sa.update(elements).where(elements.c.objectKey == text_parameter("object_key"))
        return self._compile(named.values(url=text_parameter("url")))

    @cached_property
    def forget_garbage(self) -> Statement:
        """The contents of the `forebay_garbage` are deleted, a JSON array of its rows; what was noted anew stays."""
        given = self._sql.source(garbage)
        same = garbage.c.noted_at.is_not_distinct_from(given.c.noted_at)
        done = sa.select(given.c.key_hash).where(given.c.key_hash == garbage.c.key_hash, same)
        return self._compile(sa.delete(garbage).where(sa.exists(done)))


_CHECKPOINT = ("journal_id", "applied_seq", "token", "noted_at")


def step_checkpoint(sql: Sql) -> Any:
    """A journal's step from where it is known to stand; it returns no row where it stands elsewhere."""
    mine = checkpoints.c.journal_id == text_parameter("journal_id")
    # Where there is no row, a journal can only begin: else the database has gone back, or the row was cleared.
    begins = (_number("from_seq") == 0) & (_number("from_token") == 0)
    known = sa.select(checkpoints.c.journal_id).where(mine).correlate(None).scalar_subquery()
    values = sa.select(
        text_parameter("journal_id"), _number("to_seq"), _number("to_token"), sql.moment()
    ).where(begins | known.is_not(None))
    if (patience := sql.patience()) is not None:  # all else in the transaction comes after it
        values = values.where(patience)
    insert = sql.insert(checkpoints).from_select(_CHECKPOINT, values)
    # A statement that was given up may still arrive, when it has been repeated and newer ones are in.
    stands = (checkpoints.c.applied_seq == _number("from_seq")) & (_token() == _number("from_token"))
    return insert.on_conflict_do_update(
        index_elements=["journal_id"],
        set_={name: insert.excluded[name] for name in _CHECKPOINT if name != "journal_id"},
        where=stands,
    ).returning(checkpoints.c.applied_seq)


def _token() -> Expression:
    return sa.func.coalesce(checkpoints.c.token, sa.literal_column("0"))


def _number(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.BigInteger())
