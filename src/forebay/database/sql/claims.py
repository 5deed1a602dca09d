"""What gives a thread that nobody owns to who began it, when the database could not say who that is."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import orjson
import sqlalchemy as sa

from forebay.database.sql.statement import Compiler, Statement
from forebay.model import cleaning
from forebay.model.changes import Change, Claimant, Upsert
from forebay.model.schema import CLAIM, threads, users


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
    people = [_user(by_identifier[identifier]) for identifier in sorted(by_identifier)]
    claimed = [{"id": key, "userIdentifier": claims[key].identifier} for key in sorted(claims)]
    return {"users": orjson.dumps(people).decode(), "threads": orjson.dumps(claimed).decode()}


def _user(claimant: Claimant) -> dict[str, Any]:
    metadata = orjson.Fragment(claimant.metadata)
    return {
        "id": str(uuid.uuid4()),
        "identifier": claimant.identifier,
        "metadata": metadata,
        "createdAt": cleaning.now(),
    }
