"""The people whom somebody has deleted: what notes them, and what is still there of them.

A note has no name. It holds the id that the person had, and an id that is made of the login name, which nobody reads
the name from: see `owners.name_id`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import sqlalchemy as sa

from forebay.database.sql.dialect import Expression, literal
from forebay.database.sql.statement import Compiler, Statement, text_parameter
from forebay.model.schema import Drawn, deleted, garbage, threads, tombstones, users

_IS_USER: Expression = deleted.c.kind == literal("users")
_PLACEHOLDER = "forebay-deleted:"


class DeletedUsers(Compiler):
    """Statements on users who are deleted, or about to be."""

    @cached_property
    def hold_names(self) -> Statement | None:
        """Hold back, until the transaction ends, whoever else does so for one of `names`, a JSON array of ids, sorted.

        None where writers wait for each other anyway.
        """
        held = self._sql.names_held(self._sql.given("names"))
        return self._compile(held) if held is not None else None

    @cached_property
    def rename_user(self) -> Statement:
        """Take the login name `identifier` from whoever has it; the id, if there is one.

        Who logs in from now on is somebody else. What takes its place is drawn, so that nobody can have it already.
        """
        key = sa.cast(users.c.id, sa.Text())
        renamed = sa.update(users).values(
            identifier=literal(_PLACEHOLDER).concat(Drawn()), metadata=self._sql.empty_object()
        )
        return self._compile(renamed.where(users.c.identifier == text_parameter("identifier")).returning(key))

    @cached_property
    def bury_users(self) -> Statement:
        """Note that the users of `user_ids`, a JSON array, are deleted, at `moment`."""
        given = self._sql.given("user_ids")
        key, moment = sa.cast(given.c.value, deleted.c.id.type), sa.bindparam("moment", type_=sa.BigInteger())
        found = sa.select(literal("users"), key, moment, self._sql.moment()).where(given.c.value.is_not(None))
        insert = self._sql.insert(deleted).from_select(["kind", "id", "deleted_at", "noted_at"], found)
        return self._compile(
            insert.on_conflict_do_update(
                index_elements=["kind", "id"],
                set_={name: insert.excluded[name] for name in ("deleted_at", "noted_at")},
            )
        )

    @cached_property
    def buried_users(self) -> Statement:
        """Those of `user_ids`, a JSON array, that are noted, and the moment of their deletion, a row each."""
        found = sa.select(sa.cast(deleted.c.id, sa.Text()), deleted.c.deleted_at)
        return self._compile(found.where(_IS_USER, self._among(deleted.c.id, "user_ids")))

    @cached_property
    def noted_users(self) -> Statement:
        """Those of `user_ids`, a JSON array, that are noted, as a JSON array."""
        found = sa.select(sa.cast(deleted.c.id, sa.Text())).where(
            _IS_USER, self._among(deleted.c.id, "user_ids")
        )
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def half_deleted_users(self) -> Statement:
        """The ids of the users who are noted and there, as a JSON array."""
        both = users.join(deleted, _IS_USER & (deleted.c.id == users.c.id))
        found = sa.select(sa.cast(users.c.id, sa.Text())).select_from(both)
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def thread_owners(self) -> Statement:
        """The id and the owner's of those of `thread_ids`, a JSON array, that are there, a row each."""
        found = sa.select(sa.cast(threads.c.id, sa.Text()), sa.cast(threads.c.userId, sa.Text()))
        return self._compile(found.where(self._among(threads.c.id, "thread_ids")))

    @cached_property
    def deleted_threads(self) -> Statement:
        """Those of `thread_ids`, a JSON array, that are deleted, at `up_to` or before, as a JSON array."""
        found = sa.select(sa.cast(tombstones.c.thread_id, sa.Text())).where(
            self._among(tombstones.c.thread_id, "thread_ids"), tombstones.c.deleted_at <= _up_to()
        )
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def garbage_left(self) -> Statement:
        """How many contents are still to be deleted that were noted at `up_to` or before."""
        found = sa.select(sa.func.count()).select_from(garbage).where(garbage.c.noted_at <= _up_to())
        return self._compile(sa.select(sa.cast(found.scalar_subquery(), sa.Text())))

    @cached_property
    def clock(self) -> Statement:
        """The database's own clock, in microseconds since 1970."""
        return self._compile(sa.select(sa.cast(self._sql.moment(), sa.Text())))

    def _among(self, column: sa.Column[Any], name: str) -> Expression:
        given = self._sql.given(name)
        return self._sql.among(column, sa.select(sa.cast(given.c.value, column.type)))


def _up_to() -> sa.BindParameter[Any]:
    return sa.bindparam("up_to", type_=sa.BigInteger())
