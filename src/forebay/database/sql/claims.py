"""What gives a thread that nobody owns to who began it, when the database could not say who that is.

A database that went back may have lost the owner of a thread that comes now: the row of who that was is made again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import orjson
import sqlalchemy as sa

from forebay.database.sql.statement import Compiler, Statement
from forebay.model import cleaning
from forebay.model.changes import Change, Claimant, Upsert
from forebay.model.schema import CLAIM, OWNER, threads, users


class Claims(Compiler):
    """Statements that follow a batch's upserts, in its transaction, where it holds a claim."""

    @cached_property
    def claimants(self) -> Statement:
        """Insert those of `users`, a JSON array, that are not there; who is stays as it is."""
        source = self._sql.source(users)
        columns = [column.name for column in users.columns]
        # SQLite reads "ON" after a bare FROM as a join's.
        found = sa.select(*(source.c[name] for name in columns)).where(source.c.identifier.is_not(None))
        insert = self._sql.insert(users).from_select(columns, found)
        return self._compile(insert.on_conflict_do_nothing(index_elements=["identifier"]))

    @cached_property
    def known_users(self) -> Statement:
        """The ids of those of `user_ids`, a JSON array, that are there, a row each; nobody deletes them meanwhile."""
        given = self._sql.given("user_ids")
        ids = sa.select(sa.cast(given.c.value, users.c.id.type))
        found = sa.select(sa.cast(users.c.id, sa.Text())).where(self._sql.among(users.c.id, ids))
        return self._compile(found.with_for_update(read=True, key_share=True))

    @cached_property
    def users_called(self) -> Statement:
        """The identifier and the id of those of `identifiers`, a JSON array, that are there, a row each."""
        given = self._sql.given("identifiers")
        called = sa.select(sa.cast(given.c.value, sa.Text()))
        found = sa.select(users.c.identifier, sa.cast(users.c.id, sa.Text()))
        return self._compile(found.where(self._sql.among(users.c.identifier, called)))

    @cached_property
    def claimed(self) -> Statement:
        """Those of `threads`, a JSON array, that have no owner get the user with their `userIdentifier`."""
        source = self._sql.source(threads)
        nobodys = threads.c.userIdentifier.is_(None) | (threads.c.userIdentifier == users.c.identifier)
        return self._compile(
            sa.update(threads)
            .values(userId=users.c.id, userIdentifier=users.c.identifier)
            .where(
                threads.c.id == source.c.id,
                users.c.identifier == source.c.userIdentifier,
                threads.c.userId.is_(None),
                nobodys,
            )
        )


def is_claim(change: Change) -> bool:
    """Whether more than an upsert is to be done for it."""
    return change.table == "threads" and isinstance(change, Upsert) and CLAIM in change.row


def claim_parameters(upserts: Iterable[Upsert]) -> dict[str, str] | None:
    """The parameters of both statements; None where nobody claims a thread. In order, as two writers lock."""
    claims = {upsert.key: Claimant.decode(upsert.row[CLAIM]) for upsert in upserts if is_claim(upsert)}
    if not claims:
        return None
    by_identifier = {claimant.identifier: claimant for claimant in claims.values()}
    people = [_user(by_identifier[identifier], str(uuid.uuid4())) for identifier in sorted(by_identifier)]
    claimed = [{"id": key, "userIdentifier": claims[key].identifier} for key in sorted(claims)]
    return {"users": orjson.dumps(people).decode(), "threads": orjson.dumps(claimed).decode()}


def named_owners(changes: Iterable[Change]) -> dict[str, Claimant]:
    """By id, the owners that threads name, of whom is known who they are."""
    return {
        change.row["userId"]: Claimant.decode(change.row[OWNER])
        for change in changes
        if isinstance(change, Upsert) and OWNER in change.row
    }


def users_parameter(people: Mapping[str, Claimant]) -> str:
    """The users with these ids, as a JSON array; in order, as two writers lock."""
    by_identifier = {claimant.identifier: (user_id, claimant) for user_id, claimant in people.items()}
    ordered = (by_identifier[identifier] for identifier in sorted(by_identifier))
    return orjson.dumps([_user(claimant, user_id) for user_id, claimant in ordered]).decode()


def owned_by(change: Change, owners: Mapping[str, str]) -> Change:
    """The change with another owner in the place of one of `owners`."""
    if not isinstance(change, Upsert) or OWNER not in change.row or change.row["userId"] not in owners:
        return change
    return replace(change, row={**change.row, "userId": owners[change.row["userId"]]})


def _user(claimant: Claimant, user_id: str) -> dict[str, Any]:
    metadata = orjson.Fragment(claimant.metadata)
    return {
        "id": user_id,
        "identifier": claimant.identifier,
        "metadata": metadata,
        "createdAt": cleaning.now(),
    }
