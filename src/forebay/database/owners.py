"""Whose threads are: who was lost is there again, and who was deleted stays so, with all that comes for them.

A database that went back may have lost a thread's owner. One whom somebody has deleted is noted instead, see
`sql.deleted_users`: a thread that comes for them is deleted, in its place among the changes.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import orjson

from forebay.database.connections.drivers import Driver
from forebay.database.sql.claims import is_claim, named_owners, owned_by, users_parameter
from forebay.database.sql.statements import Statements
from forebay.model.changes import Change, Claimant, Delete, Upsert, moment_of
from forebay.model.schema import CLAIM, OWNER, PASSES_ON

logger = logging.getLogger("forebay.store")

_NAMESPACE = uuid.UUID("0b8f5c5e-9a0a-4a57-8f0e-6f2a2f6f7a3d")
_OWNERS = frozenset({"userId", OWNER, PASSES_ON, CLAIM})


@dataclass(frozen=True, slots=True)
class Owned:
    """Changes as they are to be written, each in its place, and the places of those whose owner was deleted."""

    changes: list[Change]
    buried: frozenset[int] = frozenset()


def name_id(database_id: str | None, identifier: str) -> str:
    """An id that stands for a login name in one database, and does not tell it."""
    salt = (database_id or "").split(" ")[0]
    return str(uuid.uuid5(_NAMESPACE, f"{salt} {identifier}"))


async def with_owners(
    driver: Driver, statements: Statements, changes: Sequence[Change], database_id: str | None
) -> Owned | None:
    """The changes, whose threads' owners are there now, or are deleted. None where nothing was to be done.

    Of an owner who is missing it must be known who it is. Who has logged in again since has another id.
    """
    named = {owner for change in changes if (owner := _owner(change)) is not None}
    if not named:
        return None
    there = {row[0] for row in await driver.fetch(statements.known_users, {"user_ids": _array(named)})}
    missing = named - there
    if not missing:
        return None
    people = {key: who for key, who in named_owners(changes).items() if key in missing}
    names = {key: name_id(database_id, who.identifier) for key, who in people.items()}
    noted = await _buried(driver, statements, {*missing, *names.values()})

    def is_buried(change: Change) -> bool:
        key = _owner(change)
        if key is None or key not in missing:
            return False
        return key in noted or noted.get(names.get(key, ""), -1) >= moment_of(change)

    buried = {place for place, change in enumerate(changes) if is_buried(change)}
    kept = {_owner(change) for place, change in enumerate(changes) if place not in buried}
    lost = {key: who for key, who in people.items() if key in kept}
    if not lost and not buried:
        return None
    owners = await _made_again(driver, statements, lost) if lost else {}
    owned = [owned_by(change, owners) for change in changes]
    return await _bury(driver, statements, owned, buried)


async def without_deleted_claimants(
    driver: Driver, statements: Statements, changes: Sequence[Change], database_id: str | None
) -> Owned | None:
    """The changes without the threads of who was deleted since they have claimed them. None where there are none."""
    claims = {
        place: name_id(database_id, Claimant.decode(change.row[CLAIM]).identifier)
        for place, change in enumerate(changes)
        if isinstance(change, Upsert) and is_claim(change)
    }
    if not claims:
        return None
    if statements.hold_names is not None:
        await driver.fetch(statements.hold_names, {"names": _array(claims.values())})
    noted = await _buried(driver, statements, claims.values())
    buried = {place for place, name in claims.items() if noted.get(name, -1) >= moment_of(changes[place])}
    return await _bury(driver, statements, list(changes), buried) if buried else None


async def _buried(driver: Driver, statements: Statements, ids: Iterable[str]) -> dict[str, int]:
    """The moments of the deletion of those that are noted."""
    return {row[0]: row[1] for row in await driver.fetch(statements.buried_users, {"user_ids": _array(ids)})}


async def _made_again(driver: Driver, statements: Statements, lost: dict[str, Claimant]) -> dict[str, str]:
    """The ids that these people have now, by those that they had."""
    await driver.fetch(statements.claimants, {"users": users_parameter(lost)})
    called = _array(who.identifier for who in lost.values())
    found = await driver.fetch(statements.users_called, {"identifiers": called})
    by_identifier = {row[0]: row[1] for row in found}
    logger.warning("owners of threads were gone users=%d; they are there again", len(lost))
    return {key: by_identifier[who.identifier] for key, who in lost.items()}


async def _bury(driver: Driver, statements: Statements, changes: list[Change], places: set[int]) -> Owned:
    """Delete the threads of these changes; where somebody else owns one, it stays that one's."""
    if not places:
        return Owned(changes)
    ids = _array(changes[place].key for place in places)
    owners = {row[0]: row[1] for row in await driver.fetch(statements.thread_owners, {"thread_ids": ids})}
    buried: set[int] = set()
    for place in places:
        change = changes[place]
        assert isinstance(change, Upsert)
        owner = owners.get(change.key)
        if owner is not None and owner != change.row.get("userId"):
            row = {name: value for name, value in change.row.items() if name not in _OWNERS}
            changes[place] = replace(change, row=row)
        else:
            changes[place] = Delete("threads", change.key, change.key)
            buried.add(place)
    logger.warning("threads of deleted users dropped threads=%d", len(buried))
    return Owned(changes, frozenset(buried))


def _owner(change: Change) -> str | None:
    """Whom a change names as its thread's owner."""
    if change.table != "threads" or not isinstance(change, Upsert):
        return None
    return change.row.get("userId")


def _array(texts: Iterable[str]) -> str:
    return orjson.dumps(sorted(set(texts))).decode()
